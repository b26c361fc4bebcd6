"""What components call: a user's mistake is one line and exit code 2, progress is lines, results are numbers."""

import ast
import inspect
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import pytest

from taskmem import entry as entries
from taskmem.cluster import IMAGE
from taskmem.config import load_profile
from taskmem.entry import entry
from taskmem.errors import UserError
from taskmem.feedback import EventLog
from taskmem.lineage.outcome import OUTCOMES, Outcome
from taskmem.progress import SECONDS_BETWEEN, progress_lines
from taskmem.records import FeedbackEvent, write_json, write_records
from taskmem.world.facts import TYPES, VALUES
from taskmem.world.judges import Truth

ROOT = Path(__file__).parents[1]


def called_by_components() -> set[str]:
    names = set()
    for path in (ROOT / "components").glob("*/component.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "taskmem.entry":
                names |= {alias.name for alias in node.names}
    return names


ENTRIES = sorted(called_by_components())


def travelling(profile: str = "miniature") -> str:
    return load_profile(profile).model_dump_json()


def arguments(function: Callable[..., Any], folder: Path, profile: str) -> dict[str, Any]:
    """Arguments of the right kinds that name nothing that is there."""

    def value(name: str, kind: Any) -> Any:
        if name == "profile":
            return profile
        if get_origin(kind) is Mapping:
            return {"name": "one"} if name == "shard" else {}
        return [] if get_origin(kind) is Sequence else 0 if kind is int else str(folder / name)

    return {name: value(name, kind) for name, kind in get_type_hints(function).items() if name != "return"}


def test_components_call_what_is_there() -> None:
    assert len(ENTRIES) == 16
    public = [name for name, value in vars(entries).items() if hasattr(value, "__wrapped__")]
    assert sorted(public) == ENTRIES


@pytest.mark.parametrize("name", ENTRIES)
def test_a_profile_that_is_none_or_a_file_that_is_not_there_is_one_line_and_exit_code_2(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    function = getattr(entries, name)
    with pytest.raises(SystemExit) as ended:
        function(**arguments(function, tmp_path, "{}"))
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert said.err == ""
    where = "profile: " if "profile" in inspect.signature(function).parameters else f"{tmp_path}"
    assert said.out.startswith(f"taskmem: {where}")
    assert said.out.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} <= {"store"}


def test_what_is_no_user_s_mistake_is_not_hidden() -> None:
    @entry
    def broken() -> None:
        raise ValueError("ours")

    with pytest.raises(ValueError, match="ours"):
        broken()


def test_what_an_entry_returns_passes_and_its_name_stays(capsys: pytest.CaptureFixture[str]) -> None:
    @entry
    def double(number: int, *, more: int = 0) -> int:
        """Twice."""
        return 2 * number + more

    assert double(4, more=1) == 9
    assert (double.__name__, double.__doc__) == ("double", "Twice.")
    assert capsys.readouterr().out == ""


def test_a_process_that_made_a_mistake_ends_with_one_line_on_its_output() -> None:
    code = "from taskmem.entry import world_render; world_render('{', 0, {})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout.startswith("taskmem: profile: ")
    assert done.stdout.count("\n") == 1


def test_importing_the_entries_imports_no_stage() -> None:
    code = (
        "import sys, taskmem.entry; heavy = ('torch', 'kfp', 'av', 'taskmem.stages', 'taskmem.world', 'taskmem.backends');"
        "sys.exit(', '.join(name for name in heavy if name in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_progress_is_told_at_once_now_and_then_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    tell = progress_lines()
    tell(1, 1000)
    assert lines(capsys) == ["::progress 1/1000"]
    start = time.monotonic()
    for done in range(2, 1000):
        tell(done, 1000)
    allowed = (time.monotonic() - start) / SECONDS_BETWEEN + 1
    assert len(lines(capsys)) <= allowed
    time.sleep(SECONDS_BETWEEN * 1.1)
    tell(999, 1000)
    tell(1000, 1000)
    assert lines(capsys) == ["::progress 999/1000", "::progress 1000/1000"]


def test_each_stage_s_progress_is_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    progress_lines()(1, 9)
    progress_lines()(2, 9)
    assert lines(capsys) == ["::progress 1/9", "::progress 2/9"]


def test_only_a_profile_with_a_world_renders_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        entries.world_render(travelling("qwen3-vl-30b"), 0, {"development": str(tmp_path / "out")})
    (line,) = lines(capsys)
    assert line == "taskmem: profile qwen3-vl-30b: has no world to render; use --profile miniature"
    assert not (tmp_path / "out").exists()


def test_collecting_says_how_many_environments_ended_how(tmp_path: Path) -> None:
    with EventLog(tmp_path / "events" / "door.jsonl") as log:
        for number in range(5):
            log.append(
                FeedbackEvent(
                    id=f"q{number}",
                    environment="door",
                    source="a" * 64,
                    time=datetime(2026, 1, 1, tzinfo=UTC),
                    question=f"q{number}",
                    stream="s",
                    asked_at_s=number,
                    type="door",
                    text="what did the door do at 00:01?",
                    answer=None,
                    outcome="unknown",
                    consent=True,
                )
            )
    shard = {"name": "one", "environments": [{"environment": "door"}, {"environment": "quiet"}]}
    folders = (str(tmp_path / "events"), "", "")
    numbers = entries.feedback_collection(shard, *folders, travelling(), str(tmp_path / "out"))
    assert numbers == {"ready": 1.0, "skipped": 1.0, "failed": 0.0, "kept": 0.0, "promoted": 0.0}
    assert all(isinstance(number, float) for number in numbers.values())


def test_a_shard_that_is_none_is_a_user_s_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "events").mkdir()
    shard = {"name": "one", "environments": [{"environment": "door"}, {"environment": "door"}]}
    with pytest.raises(SystemExit) as ended:
        entries.feedback_collection(shard, str(tmp_path / "events"), "", "", travelling(), str(tmp_path / "out"))
    assert ended.value.code == 2
    (line,) = lines(capsys)
    assert line.startswith("taskmem: shard: the shard: ")
    assert "stands twice in the shard" in line


@pytest.mark.parametrize("steered", ["adapters", "feedback"])
def test_an_arm_without_an_environment_has_no_adapter_and_no_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], steered: str
) -> None:
    facts = {kind: VALUES[kind][0] for kind in TYPES}
    write_records(tmp_path / "truth.jsonl", [Truth(stream="s", index=0, facts=facts)])
    given = arguments(entries.streaming_eval, tmp_path, travelling())
    assert given["shard"] == {"name": "one"}
    other = {"adapters": "feedback", "feedback": "adapters"}[steered]
    with pytest.raises(SystemExit):
        entries.streaming_eval(**{**given, "world": str(tmp_path), steered: str(tmp_path), other: None})
    (line,) = lines(capsys)
    assert line == "taskmem: shard one: names no environment whose adapter or questions to use"


def test_the_tasks_are_chosen_from_an_evaluation_s_summary(tmp_path: Path) -> None:
    measures = {"door": (0.4, 0.9), "room": (0.2, 0.5), "object": (0.3, 0.9)}
    by_type = {kind: {"coverage": coverage, "precision": precision} for kind, (coverage, precision) in measures.items()}
    write_json(tmp_path / "summary.json", {"by_type": by_type})
    task, prompted, adapted = entries.choose_tasks(str(tmp_path))
    assert task == "object"
    assert [environment["environment"] for environment in prompted["environments"]] == ["object"]
    assert [shard["environments"][0]["environment"] for shard in adapted] == ["object", "door", "object"]


@pytest.mark.parametrize("image", [None, "registry.test/taskmem/train@sha256:" + "7" * 64])
def test_a_record_names_the_image_that_the_task_was_told_it_runs_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: str | None
) -> None:
    monkeypatch.delenv(IMAGE, raising=False)
    if image:
        monkeypatch.setenv(IMAGE, image)
    shards = []
    for name, status in (("door", "failed"), ("room", "promoted")):
        shards.append(tmp_path / name)
        ended = Outcome.model_validate(
            {"environment": name, "name": name, "stage": "gate", "status": status, "reason": "so"}
        )
        write_records(shards[-1] / OUTCOMES, [ended])
    record, summary = tmp_path / "record", tmp_path / "summary.md"
    used, ended, nowhere = {"outcomes": [str(shard) for shard in shards]}, [str(s) for s in shards], ("", "", "", "")
    numbers = entries.lineage_record(used, None, ended, [], *nowhere, travelling(), 0, str(record), str(summary))
    assert (numbers["failed"], numbers["promoted"], numbers["ready"]) == (1.0, 1.0, 0.0)
    written = json.loads((record / "lineage.json").read_text())
    assert written["image"] == (image or "unknown")
    assert [e["environment"] for e in written["environments"]] == ["door", "room"]
    assert summary.read_text().count("\n") == 4


def test_a_damaged_outcome_is_named_by_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / OUTCOMES).write_text("{}\n")
    with pytest.raises(SystemExit):
        out = (str(tmp_path / "r"), str(tmp_path / "s"))
        entries.lineage_record({}, None, [str(tmp_path)], [], "", "", "", "", travelling(), 0, *out)
    (line,) = lines(capsys)
    assert line.startswith(f"taskmem: {tmp_path / OUTCOMES}:1: Outcome environment: Field required")
    assert not (tmp_path / "r").exists()


def test_a_mistake_is_told_in_its_own_words(capsys: pytest.CaptureFixture[str]) -> None:
    @entry
    def mistaken() -> None:
        raise UserError("events: line 3: no JSON; mend it")

    with pytest.raises(SystemExit) as ended:
        mistaken()
    assert (ended.value.code, lines(capsys)) == (2, ["taskmem: events: line 3: no JSON; mend it"])
