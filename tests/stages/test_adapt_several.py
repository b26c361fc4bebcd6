"""`taskmem phase-two --environments`: many environments in one process, from one cache, each with its outcome."""

import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from mined_site import ADAPTER, Site

from pipelines.cli import main
from taskmem.cli import shipped_base
from taskmem.config import PhaseTwoSettings
from taskmem.lineage.outcome import OUTCOMES, Outcome
from taskmem.records import read_records
from taskmem.stages.adapt import moved_by

WIDTH = 80


def write_profile(site: Site) -> Path:
    """The site's profile as a file, as far as training goes."""
    steps = PhaseTwoSettings.model_validate(site.profile.phase_two).steps
    deviation = {"reason": "Few steps, so that a test is quick.", "settings": {"phase_two": {"steps": steps}}}
    path = site.root / "quick.yaml"
    path.write_text(yaml.safe_dump({"name": "quick", "extends": "miniature", "deviations": [deviation]}))
    return path


@dataclass(frozen=True)
class Ended:
    """What a command wrote on its output and on its errors, and its exit code."""

    code: int
    stdout: str
    stderr: str


class Command:
    """`taskmem phase-two` on a site, in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        self._monkeypatch = monkeypatch

    def __call__(self, site: Site, *options: str, pairs: str = "pairs", out: str = "adapters") -> Ended:
        line = ["taskmem", "phase-two", site.root / pairs, "--policy", shipped_base(), "--out", site.root / out]
        line += ["--rollouts", site.root / "rollouts", "--segments", site.root / "film"]
        given = [*line, "--profile", write_profile(site), *options]
        self._monkeypatch.setattr(sys, "argv", [str(word) for word in given])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = self._capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Ended(ended.value.code, said.out, said.err)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    return Command(capsys, monkeypatch)


def outcomes(site: Site, out: str = "adapters") -> dict[str, str]:
    return {o.name: o.status for o in read_records(site.root / out / OUTCOMES, Outcome)}


@pytest.fixture
def by_hand(site: Site) -> Site:
    """The preferences of two environments in a folder that no stage has written, with a third that is torn."""
    site.mine("door", "room")
    (site.root / "[red]hand").mkdir()
    for name in ("door", "room"):
        shutil.copytree(site.root / "pairs" / name, site.root / "[red]hand" / name)
    (site.root / "[red]hand" / "torn").mkdir()
    (site.root / "[red]hand" / "torn" / "preferences.jsonl").write_text("{}\n")
    return site


def test_every_environment_has_its_adapter_or_its_reason(run: Command, by_hand: Site) -> None:
    done = run(by_hand, "--environments", "door,torn,none,room", pairs="[red]hand")
    assert (done.code, done.stderr) == (0, "")
    assert outcomes(by_hand) == {"door": "ready", "torn": "failed", "none": "failed", "room": "ready"}
    root = by_hand.root / "adapters"
    assert {path.name for path in root.iterdir()} == {"door", "room", OUTCOMES}
    assert set(by_hand.adapter("door")) == set(by_hand.adapter("room")) == ADAPTER
    table = done.stdout[done.stdout.index("\nadapters") + 1 :].splitlines()
    assert table[-1] == str(root / OUTCOMES)
    assert all(len(line) <= WIDTH for line in table[:-1])
    assert [
        words[:3] for line in table if (words := line.split()) and words[0] in ("door", "torn", "none", "room")
    ] == [[name, name, status] for name, status in outcomes(by_hand).items()]
    # a reason is shown as it is and whole, whatever brackets are in it; the table breaks it where it must
    shown = "".join("".join(line[table[1].index("reason") :] for line in table[3:-1]).split())
    for outcome in read_records(root / OUTCOMES, Outcome):
        assert outcome.reason.replace(" ", "") in shown
    assert "[red]hand/torn/preferences.jsonl:1:" in shown


def test_what_one_computed_serves_the_others_and_who_moved_each_is_one_line(run: Command, by_hand: Site) -> None:
    done = run(by_hand, "--environments", "door,room", pairs="[red]hand")
    door, room = ({pair.context for pair in by_hand.pairs(name)} for name in ("door", "room"))
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert f"room: {len(room)} pairs of {len(room)} contexts; trunks: {len(room - door)} computed, " in done.stdout
    assert f"{len(room & door)} from the cache" in done.stdout
    moved = [line for line in lines if "moved most by" in line]
    assert [line.split(":")[0] for line in moved] == ["door", "room"]
    assert moved[1] == "room: moved most by aaaaaaaa 100%"
    named = re.findall(r"(\w{8}) (-?\d+)%", moved[0])
    sources = json.loads(by_hand.adapter("door")["influence.json"])["sources"]
    assert {name for name, _ in named} == {name[:8] for name in sources}
    assert all(len(line) + 2 <= WIDTH for line in lines if line.startswith(("door:", "room:")))


def test_who_pulls_against_the_others_is_named_and_only_they(run: Command, by_hand: Site) -> None:
    run(by_hand, "--environments", "door", pairs="[red]hand")
    sources = {
        name: {"share": 0.3, "steps": 2, "agreement": pull} for name, pull in (("a" * 64, 0.9), ("b" * 64, -0.2))
    }
    record = by_hand.root / "adapters" / "door" / "influence.json"
    record.write_text(json.dumps({"sources": sources, "pairs": []}))
    assert moved_by(record.parent) == "aaaaaaaa 50%, bbbbbbbb 50%; against the others: bbbbbbbb"
    sources["b" * 64]["agreement"] = 0.1
    record.write_text(json.dumps({"sources": sources, "pairs": []}))
    assert moved_by(record.parent) == "aaaaaaaa 50%, bbbbbbbb 50%"


@pytest.mark.parametrize("kept", [True, False])
def test_an_environment_s_adapter_is_that_of_a_run_of_its_own(run: Command, by_hand: Site, kept: bool) -> None:
    cache = ("--cache", str(by_hand.root / "kept")) if kept else ()
    assert run(by_hand, "--environments", "room,door", *cache, pairs="[red]hand").code == 0
    alone = run(by_hand, "--name", "door", *cache, pairs="[red]hand/door", out="alone")
    assert (alone.code, alone.stderr) == (0, "")
    assert by_hand.adapter("door", "alone") == by_hand.adapter("door")
    said = alone.stdout.splitlines()
    assert said[-1] == str(by_hand.root / "alone" / "door")
    count = len(by_hand.pairs("door"))
    computed = (0, count) if kept else (count, 0)
    assert f"trunks: {computed[0]} computed, {computed[1]} from the cache" in said[0]
    assert said[1].startswith("  moved most by ")


def test_if_none_is_ready_it_ends_with_one_line_and_exit_code_2(run: Command, by_hand: Site) -> None:
    done = run(by_hand, "--environments", "torn,none", pairs="[red]hand")
    assert done.code == 2
    assert (
        done.stderr
        == f"taskmem: {by_hand.root / 'adapters'}: no environment is ready; mend what the table says and run again\n"
    )
    assert outcomes(by_hand) == {"torn": "failed", "none": "failed"}
    assert [path.name for path in (by_hand.root / "adapters").iterdir()] == [OUTCOMES]


def test_what_a_shard_s_mining_said_is_carried_on(run: Command, site: Site) -> None:
    site.mine("door", "quiet", {"environment": "weather"})
    done = run(site, "--environments", "quiet,door,weather,unknown")
    assert (done.code, done.stderr) == (0, "")
    assert outcomes(site) == {"quiet": "skipped", "door": "ready", "weather": "failed", "unknown": "failed"}
    stages = {o.name: o.stage for o in read_records(site.root / "adapters" / OUTCOMES, Outcome)}
    assert stages["quiet"] == "feedback_collection"
    assert stages["weather"] == "preference_mining"


def test_a_folder_that_holds_something_else_is_never_replaced(run: Command, by_hand: Site) -> None:
    precious = by_hand.root / "adapters" / "room" / "thesis.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("years of work")
    for options, pairs in ((("--environments", "door,room"), "[red]hand"), (("--name", "room"), "[red]hand/room")):
        done = run(by_hand, *options, pairs=pairs)
        assert done.code == 2
        assert done.stderr == (
            f"taskmem: {precious.parent}: holds something that is no adapter, which would be lost; "
            "give another folder or name\n"
        )
    assert precious.read_text() == "years of work"
    assert [path.name for path in (by_hand.root / "adapters").iterdir()] == ["room"]


def test_run_again_it_replaces_its_own_adapters(run: Command, by_hand: Site) -> None:
    options = ("--environments", "door,room", "--cache", str(by_hand.root / "kept"))
    run(by_hand, *options, pairs="[red]hand")
    before = by_hand.adapter("door"), by_hand.adapter("room")
    shutil.rmtree(by_hand.root / "[red]hand" / "room")
    assert run(by_hand, *options, pairs="[red]hand").code == 0
    assert by_hand.adapter("door") == before[0]
    assert not (by_hand.root / "adapters" / "room").exists()
