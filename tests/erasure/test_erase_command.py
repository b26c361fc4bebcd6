"""`taskmem audit erase`: it shows, it asks, it says what it did."""

import io
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
import typer
from click.testing import Result
from erasure_parts import Site, Snapshot
from erasure_texts import CANARY, OURS, holding
from typer.testing import CliRunner

from taskmem.cli import run
from taskmem.commands.erase import erase
from taskmem.erasure.target import Target
from taskmem.erasure.tombstones import read_tombstone
from taskmem.errors import UserError
from taskmem.feedback import EventLog
from taskmem.store import open_store


def invoke(site: Site, *more: str, answer: str = "", target: str = OURS) -> Result:
    app = typer.Typer()
    app.command()(erase)
    options = ["--store", site.store, "--lineage", str(site.lineage), "--events", str(site.events)]
    folders: Sequence[str] = ["--folder", str(site.run), "--folder", str(site.clone)]
    return CliRunner().invoke(app, [target, *options, *folders, *more], input=answer, env={"COLUMNS": "80"})


def test_a_dry_run_shows_all_of_it_in_80_columns_and_touches_nothing(snapshot: Snapshot) -> None:
    site, before = snapshot.restore(), snapshot.files()
    done = invoke(site, "--dry-run")
    assert done.exit_code == 0, done.output
    assert snapshot.files() == before
    assert max(len(line) for line in done.output.splitlines()) <= 80
    assert f"stream {OURS}: would be erased" in done.output
    (logs,) = [line.split() for line in done.output.splitlines() if line.startswith("feedback logs")]
    assert logs == ["feedback", "logs", "5", "0"]
    words = " ".join(done.output.split())
    assert "adapters that rest on it, to be made anew by the next nightly run: door@v1" in words
    assert "door@v1: what a vector of 8 numbers learned; it is no champion" in words


def test_without_yes_it_asks_and_no_leaves_everything(snapshot: Snapshot) -> None:
    site, before = snapshot.restore(), snapshot.files()
    done = invoke(site, answer="n\n")
    assert done.exit_code == 1
    assert f"Erase stream {OURS} for good?" in done.output
    assert snapshot.files() == before


def test_without_a_terminal_it_says_in_one_line_what_to_do(
    snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site, before = snapshot.restore(), snapshot.files()
    app = typer.Typer()
    app.command()(erase)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    monkeypatch.setattr("sys.argv", ["taskmem", OURS, "--store", site.store, "--lineage", str(site.lineage)])
    with pytest.raises(SystemExit) as ended:
        run(app)
    assert ended.value.code == 2
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .startswith("taskmem: no answer to the question; answer it in a terminal")
    )
    assert snapshot.files() == before


def test_a_lineage_that_is_not_there_is_named_and_not_made(site: Site) -> None:
    nowhere = site.root / "nowhere.git"
    app = typer.Typer()
    app.command()(erase)
    done = CliRunner().invoke(app, [OURS, "--store", site.store, "--lineage", str(nowhere), "--yes"])
    assert isinstance(done.exception, UserError)
    assert "nowhere.git" in str(done.exception)
    assert not nowhere.exists()


def test_with_yes_it_erases_and_names_who_did_it(site: Site) -> None:
    done = invoke(site, "--yes", "--by", "Grace", "--reason", "asked to")
    assert done.exit_code == 0, done.output
    assert f"stream {OURS}: erased" in done.output
    assert holding(CANARY, site.root) == []
    stone = read_tombstone(open_store(site.store), Target("stream", OURS))
    assert stone is not None
    assert (stone.by, stone.reason) == ("Grace", "asked to")
    assert datetime.now(UTC) - stone.time < timedelta(minutes=10)
    assert "erased before, nothing changed" in invoke(site, "--yes").output


def test_a_log_that_an_agent_writes_is_not_touched_and_nothing_else_is_either(snapshot: Snapshot) -> None:
    site, before = snapshot.restore(), snapshot.files()
    with EventLog(site.events / "door.jsonl"):
        done = invoke(site, "--yes")
    assert isinstance(done.exception, UserError)
    assert str(done.exception).endswith("an agent is writing this log; stop it, and run the erasure again")
    changed = {name for name, data in snapshot.files().items() if before.get(name) != data}
    assert changed == {f"store/objects/tombstones/{Target('stream', OURS).digest}~"}


@pytest.mark.parametrize(
    ("target", "said"), [("../etc", "neither STREAM, ENV/STREAM nor the hash of a source"), ("", "neither")]
)
def test_what_is_no_stream_and_no_source_is_the_users_mistake(site: Site, target: str, said: str) -> None:
    done = invoke(site, "--yes", target=target)
    assert isinstance(done.exception, UserError)
    assert said in str(done.exception)
    assert "\n" not in str(done.exception)
