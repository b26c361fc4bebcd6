"""The commands as a person runs them: a table, files, an exit code, and one line for each thing that does not hold."""

import json
from datetime import timedelta
from pathlib import Path

import pytest
from audit_parts import CANARY, IMAGE, NOW, Place, changed, one_byte_off
from typer.testing import CliRunner, Result

from taskmem.commands.audit import audit_app
from taskmem.records import Response, write_records
from taskmem.registry.versions import read_manifest


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def run(place: Place, *arguments: str) -> Result:
    done = CliRunner().invoke(audit_app, [*arguments, *place.options()])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    return done


def test_the_chain_is_shown_in_80_columns_and_written_as_json_and_as_a_page(place: Place, tmp_path: Path) -> None:
    files = (tmp_path / "chain.json", tmp_path / "chain.html")
    done = run(place, "adapter", "door@v2", "--json", str(files[0]), "--html", str(files[1]))
    assert (done.exit_code, done.stderr) == (0, "")
    assert "✓ verified" in done.stdout
    table = done.stdout.partition(str(tmp_path))[0]
    assert max(len(line.rstrip()) for line in table.splitlines()) <= 80
    assert json.loads(files[0].read_text())["holds"] is True
    assert CANARY not in done.stdout + files[0].read_text() + files[1].read_text()


def test_what_users_wrote_is_shown_with_show_text(place: Place) -> None:
    assert CANARY in run(place, "adapter", "door@v2", "--show-text").stdout


def test_what_does_not_hold_is_one_line_each_and_exit_code_2(place: Place) -> None:
    folder = place.root / "night2"
    one, other = (folder / name for name in ("events/door.jsonl", "preferences/door-night/preferences.jsonl"))
    data = one.read_bytes(), other.read_bytes()
    with changed(place.object_of(data[0]), one_byte_off(data[0])), changed(place.object_of(data[1]), None):
        done = run(place, "adapter", "door@v2")
    assert done.exit_code == 2
    first, second = done.stderr.splitlines()
    assert first.startswith(
        "taskmem: pairs: missing: environments/door-night/preferences/preferences.jsonl (files/md5/"
    )
    assert second.startswith("taskmem: events.jsonl: damaged: environments/door-night/events.jsonl (files/md5/")
    assert CANARY not in done.stdout + done.stderr


def test_a_request_is_traced_from_the_log(place: Place, tmp_path: Path) -> None:
    made = read_manifest(place.store, "door", "v2")
    answer = Response(
        id="r1",
        time=NOW + timedelta(days=3),
        environment="door",
        policy=made.policy,
        adapter="door@v2",
        adapter_digest=made.files.adapter_model,
        image=IMAGE,
        stream="s0",
        question="q1",
        memories=("s0:1",),
    )
    write_records(tmp_path / "responses.jsonl", [answer])
    done = run(place, "request", "r1", "--responses", str(tmp_path))
    assert done.exit_code == 0
    assert "request r1" in done.stdout
    assert "adapter door@v2" in " ".join(done.stdout.split())


def test_a_difference_is_a_table_and_json(place: Place, tmp_path: Path) -> None:
    done = run(place, "diff", "door@v1", "v2", "--json", str(tmp_path / "diff.json"))
    assert (done.exit_code, done.stderr) == (0, "")
    said = " ".join(done.stdout.split())
    for part in ("feedback 0 only here 1 only here, 5 in both", "settings.profile.phase_two.steps 5 6", "cosine"):
        assert part in said
    assert json.loads((tmp_path / "diff.json").read_text())["feedback"]["added"] == ["q5"]
