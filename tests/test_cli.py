"""The command line: every option explains itself, and a user's mistake is one line and exit code 2."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from pipelines.cli import main
from taskmem.cli import app, shipped_base
from taskmem.records import Segment, write_json, write_records
from taskmem.store.locks import locked

COMMAND = Path(sys.executable).with_name("taskmem")
QUICK = """
name: quick
extends: miniature
deviations:
  - reason: "One stream of two segments in every split, so that rendering takes no time."
    settings:
      world: {stream_segments: 2, phase_one: 1, deployment: 1, development: 1, held_out: 1}
"""


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with the words that name it, groups too."""
    yield words, command
    for name, below in sorted(getattr(command, "commands", {}).items()):
        yield from commands(below, (*words, name))


def write_film(folder: Path) -> None:
    """A segmentation of one segment, whose clip is missing."""
    span = {"start_s": 0.0, "end_s": 10.0, "fps": 0.2, "width": 64, "height": 64}
    segment = {"stream": "s", "index": 0, "source": "s.mp4", "clip": "clips/s/000000.mp4", "sha256": "0" * 64, **span}
    write_records(folder / "segments.jsonl", [Segment.model_validate(segment)])


ALL = dict(commands(get_command(app)))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own, with a little of everything that a command could be given wrongly."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "truths").mkdir()
    (tmp_path / "truths" / "truth.jsonl").touch()
    (tmp_path / "quick.yaml").write_text(QUICK)
    (tmp_path / "torn.yaml").write_text("name: torn\nextends: [")
    (tmp_path / "typo.yaml").write_text(QUICK.replace("held_out", "heldout"))
    return tmp_path


def mistake(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, line: str) -> str:
    """The one line that `taskmem LINE` ends with, in this process."""
    monkeypatch.setattr(sys, "argv", ["taskmem", *line.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.startswith("taskmem: ")
    assert said.count("\n") == 1
    assert said.endswith("\n")
    return said


def test_the_console_script_is_installed() -> None:
    (script,) = entry_points(group="console_scripts", name="taskmem")
    assert script.load() is main
    done = subprocess.run([COMMAND, "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: taskmem" in done.stdout


GROUPS = ("world", "registry", "audit", "serve", "token")
ON_A_CLUSTER = ("submit", "schedule", "runs", "logs")


def test_there_is_one_command_per_stage() -> None:
    stages = {"segment", "phase-one", "rollouts", "score", "collect", "mine", "phase-two", "evaluate", "gate", "deploy"}
    assert {words[0] for words in ALL if words} == {
        "loop",
        "demo",
        "compile",
        "report",
        "results",
        "export",
        *GROUPS,
        *ON_A_CLUSTER,
        *stages,
    }


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_help_names_and_explains_the_command_and_every_option(words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "250", "TERM": "dumb"})
    assert done.exit_code == 0
    assert ALL[words].help.split("\n")[0] in done.output
    for parameter in ALL[words].params:
        assert parameter.help, f"{parameter.name} has no help"
        # the box of the help text may break a line, its words stay whole
        assert all(word in done.output for word in (*parameter.opts, *parameter.help.split()) if word != parameter.name)


@pytest.mark.parametrize("group", ["", *GROUPS])
def test_a_group_without_a_command_shows_its_help_and_nothing_more(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, group: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["taskmem", *group.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert "Usage: " in said.out
    assert said.err == ""


MAKING = [
    words
    for words, command in ALL.items()
    if not hasattr(command, "commands") and words[0] not in ("registry", "audit", "serve", "token", *ON_A_CLUSTER)
]


@pytest.mark.parametrize("words", MAKING)
def test_every_command_that_makes_something_writes_to_out(words: tuple[str, ...]) -> None:
    assert "--out" in {name for parameter in ALL[words].params for name in parameter.opts}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("loop --out out --profile typo", "profile typo: not found; give one of"),
        ("loop --out out --profile torn.yaml", "torn.yaml:2: not valid YAML"),
        ("loop --out out --profile typo.yaml", "typo.yaml: world.heldout: Extra inputs"),
        ("loop --out out --profile qwen3-vl-30b", "profile qwen3-vl-30b: the loop runs on the embedded world"),
        ("loop --out out --profile quick.yaml --base empty", "empty: no policy checkpoint (config.json is missing)"),
        ("loop --out out --profile quick.yaml --base nowhere", "nowhere: no policy checkpoint"),
        ("segment nowhere --out out", "nowhere: no such file or folder"),
        ("segment empty --out out --profile typo", "profile typo: not found"),
        ("phase-one nowhere --policy p --development d --questions q --out out", "--world"),
        ("rollouts nowhere --policy p --out out", "nowhere/segments.jsonl: cannot be read"),
        ("score nowhere --segments s --out out --world empty", "empty: no truth.jsonl there"),
        ("score nowhere --segments s --out out", "--world"),
        ("score nowhere --segments s --out out --profile qwen3-vl-30b", "TASKMEM_JUDGE_API_KEY: holds no API key"),
        ("collect nowhere --out out", "nowhere: the event log cannot be read"),
        ("collect file --out out --since nowhere", "nowhere: cannot be read"),
        (
            "gate a --policy p --champion c --segments s --questions q --feedback empty --environment e --world truths --out out",
            "empty/watermark.json: cannot be read",
        ),
        ("phase-two nowhere --policy p --rollouts r --segments s --out out", "r/rollouts.jsonl: cannot be read"),
        (
            "phase-two nowhere --policy p --rollouts r --segments s --out out --environments a",
            "nowhere: no such folder",
        ),
        ("phase-two empty --policy p --rollouts r --segments s --out out --environments a,b,a", "environments a,b,a: "),
        ("phase-two empty --policy p --rollouts r --segments s --out out --environments a,", "environments a,: names"),
        (
            "phase-two empty --policy p --rollouts r --segments s --out out --environments ../a",
            "environments ../a: names",
        ),
        ("phase-two . --policy p --rollouts r --segments s --out ./empty --environments ..", "environments ..: names"),
        (
            "phase-two empty --policy p --rollouts r --segments s --out empty/. --environments a",
            "holds the preferences",
        ),
        ("evaluate nowhere --policy p --questions q --out out --world empty", "empty: no truth.jsonl there"),
        ("world render --out out --profile qwen3-vl-30b", "profile qwen3-vl-30b: has no world to render"),
        ("world render --out out --profile nowhere.yaml", "profile nowhere.yaml: not found"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, line: str, says: str
) -> None:
    assert says in mistake(capsys, monkeypatch, line)
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("loop --profile quick.yaml", "--out"),
        ("loop --out out --seed -1", "--seed"),
        ("loop --out out --seed many", "--seed"),
        ("loop --out out --typo", "--typo"),
        ("loops", "loops"),
        ("loop --out out --profile quick.yaml --videos nowhere", "nowhere"),
        ("loop --out out --profile quick.yaml --videos file", "file"),
        ("loop --out file --profile quick.yaml", "file"),
        ("loop --out file/out --profile quick.yaml", "file/out"),
        ("world render --out file/out --profile quick.yaml", "file/out"),
    ],
)
def test_a_mistake_in_the_words_themselves_is_one_line_too(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, line: str, says: str
) -> None:
    assert says in mistake(capsys, monkeypatch, line)


def render(out: str, seed: str = "0") -> dict[str, bytes]:
    """Every file that the command wrote below the folder `out`, by its path there."""
    line = ["world", "render", "--profile", "quick.yaml", "--seed", seed, "--out", out]
    assert CliRunner().invoke(app, line).exit_code == 0
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(Path(out).rglob("*")) if p.is_file()}


def test_world_render_gives_the_same_bytes_for_the_same_seed_and_others_for_another(here: Path) -> None:
    first, again, other = render("first", "0"), render("again", "0"), render("other", "1")
    assert len(first) == 4 * 3
    assert again == first
    assert other.keys() != first.keys()
    assert not set(other.values()) & set(first.values())


def test_collect_says_how_much_it_found_and_how_much_it_refused(here: Path) -> None:
    (here / "log.jsonl").write_text("no event\nnor this\n")
    done = CliRunner().invoke(app, ["collect", "log.jsonl", "--out", "out"])
    assert (done.exit_code, done.output.splitlines()) == (0, ["no questions; 2 lines in out/refused.jsonl"])


def test_a_folder_that_is_no_policy_is_one_line_without_any_library_s_words(here: Path) -> None:
    write_film(here / "film")
    line = ["rollouts", "film", "--policy", "empty", "--out", "out"]
    done = subprocess.run([COMMAND, *line], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("taskmem: ")
    assert "no policy checkpoint (config.json is missing)" in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_policy_without_its_weights_is_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_film(here / "film")
    shutil.copytree(shipped_base(), here / "torn", ignore=shutil.ignore_patterns("*.safetensors"))
    assert "torn" in mistake(capsys, monkeypatch, "rollouts film --policy torn --out out")


def test_a_segmentation_without_a_segment_is_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "film").mkdir()
    (here / "film" / "segments.jsonl").touch()
    said = mistake(capsys, monkeypatch, f"rollouts film --policy {shipped_base()} --out out")
    assert "film" in said


@pytest.mark.parametrize(
    ("command", "world"),
    [("loop", ""), ("phase-one s --policy p --development d --questions q", " --world world")],
    ids=["loop", "phase-one"],
)
def test_no_resume_never_removes_what_taskmem_did_not_write(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str, world: str
) -> None:
    (here / "precious").mkdir()
    (here / "precious" / "thesis.txt").touch()
    assert "typo" in mistake(capsys, monkeypatch, f"{command} --out precious --no-resume --profile typo")
    assert (here / "precious" / "thesis.txt").exists()
    render("world")
    said = mistake(capsys, monkeypatch, f"{command} --out precious --no-resume --profile quick.yaml{world}")
    assert "precious: not a folder of an earlier run" in said
    assert (here / "precious" / "thesis.txt").exists()


def test_no_resume_starts_anew(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    render("world")
    write_json(here / "out" / "checkpoints" / "old.json", {})
    write_json(here / "out" / "run.json", {})
    line = "phase-one nowhere --policy p --development d --questions q --out out --world world --profile quick.yaml"
    mistake(capsys, monkeypatch, line)
    assert (here / "out" / "checkpoints").exists()
    mistake(capsys, monkeypatch, f"{line} --no-resume")
    assert not (here / "out" / "checkpoints").exists()


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """The loop, interrupted as by Ctrl-C once it has begun: its folder, exit code and last words."""
    root = tmp_path_factory.mktemp("interrupted")
    (root / "quick.yaml").write_text(QUICK)
    line: list[str | Path] = [COMMAND, "loop", "--out", root / "out", "--profile", root / "quick.yaml"]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while not (root / "out" / "world" / "deployment").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    return root / "out", process.returncode, said


def test_an_interruption_ends_with_exit_code_130_and_keeps_what_was_done(interrupted: tuple[Path, int, str]) -> None:
    out, code, said = interrupted
    assert code == 130
    assert "Traceback" not in said
    assert (out / ".stages" / "world.phase_one.json").exists()
    assert not (out / "results.json").exists()


def test_an_interruption_says_that_the_same_command_goes_on(interrupted: tuple[Path, int, str]) -> None:
    assert interrupted[2] == "taskmem: interrupted; the same command goes on from here\n"


def test_a_second_run_on_the_same_folder_is_refused_while_the_first_is_at_work(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "out").mkdir()
    with locked(here / "out" / ".lock"):
        said = mistake(capsys, monkeypatch, "loop --out out --profile quick.yaml")
    assert "out: another run is writing there; wait for it or give another --out" in said
    assert not (here / "out" / "world").exists()
