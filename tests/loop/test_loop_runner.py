"""The runner: what is done is skipped, what changed is done again, and a kill costs only the stage it hit."""

import json
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from loop_parts import Listener

import taskmem
from taskmem.files import sha256_tree
from taskmem.loop.runner import Done, Runner, Work
from taskmem.progress import Progress

SETTINGS = {"seed": 0}


class Recorder:
    """Work that writes `text` and keeps what it found in its folder each time."""

    def __init__(self, text: str = "content") -> None:
        self.text = text
        self.found: list[list[str]] = []

    def __call__(self, out: Path, progress: Progress) -> None:
        self.found.append(sorted(path.name for path in out.iterdir()))
        (out / "file.txt").write_text(self.text)


class BrokenError(Exception):
    pass


def broken_after(work: Work) -> Work:
    def run(out: Path, progress: Progress) -> None:
        work(out, progress)
        raise BrokenError

    return run


def once(root: Path, work: Work, inputs: dict[str, Done | str] | None = None, settings: object = SETTINGS) -> Done:
    """One stage in a run of its own."""
    return Runner(root, Listener())("stage", work, inputs or {"in": "a"}, settings)


def test_a_finished_stage_lies_under_its_name_with_the_digest_of_its_content(tmp_path: Path) -> None:
    done = Runner(tmp_path, Listener())("group/stage", Recorder(), {}, SETTINGS)
    assert done.folder == tmp_path / "group" / "stage"
    assert (done.folder / "file.txt").read_text() == "content"
    assert done.digest == sha256_tree(done.folder)


def test_nothing_of_the_work_in_progress_stays_behind(tmp_path: Path) -> None:
    once(tmp_path, Recorder())
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()) == [
        ".stages/stage.json",
        "stage/file.txt",
    ]


def test_an_unchanged_stage_is_skipped_and_says_so(tmp_path: Path) -> None:
    work, display = Recorder(), Listener()
    first = once(tmp_path, work)
    again = Runner(tmp_path, display)("stage", work, {"in": "a"}, SETTINGS)
    assert again == first
    assert len(work.found) == 1
    assert (display.ran, display.unchanged) == ([], ["stage"])


@pytest.mark.parametrize(
    ("inputs", "settings"),
    [
        ({"in": "b"}, SETTINGS),
        ({"other": "a"}, SETTINGS),
        ({"in": "a", "more": "c"}, SETTINGS),
        ({"in": "a"}, {"seed": 1}),
    ],
    ids=["the digest of an input", "the name of an input", "a further input", "a setting"],
)
def test_a_stage_is_redone_when_this_changes(tmp_path: Path, inputs: dict[str, Done | str], settings: object) -> None:
    work = Recorder()
    once(tmp_path, work)
    once(tmp_path, work, inputs, settings)
    assert work.found == [[], []]


def test_a_stage_is_redone_when_an_input_stage_gave_other_content_and_only_then(tmp_path: Path) -> None:
    later = Recorder()

    def run(text: str, setting: str) -> None:
        runner = Runner(tmp_path, Listener())
        first = runner("first", Recorder(text), {}, {"setting": setting})
        runner("later", later, {"first": first}, SETTINGS)

    run("content", "a")
    run("content", "b")
    assert len(later.found) == 1
    run("other content", "c")
    assert len(later.found) == 2


def test_a_stage_is_redone_when_the_library_s_code_changed(tmp_path: Path) -> None:
    shutil.copytree(Path(taskmem.__file__).parent, tmp_path / "library" / "taskmem")
    script = """
        from pathlib import Path
        import taskmem
        from taskmem.loop.runner import Runner
        from loop_parts import Listener

        source, runs = Path(taskmem.__file__).with_name("errors.py"), []

        def run() -> int:
            Runner(Path("out"), Listener())("stage", lambda out, progress: runs.append(out), {}, {})
            return len(runs)

        counts = [run(), run()]
        source.write_text(source.read_text() + "# changed\\n")
        print(source, *counts, run(), run())
    """
    paths = f"{tmp_path / 'library'}:{Path(__file__).parent}"
    answer = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=tmp_path,
        env={"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.split() == [str(tmp_path / "library/taskmem/errors.py"), "1", "1", "2", "2"]


def tampered(folder: Path) -> None:
    (folder / "file.txt").write_text("somebody's")


def enlarged(folder: Path) -> None:
    (folder / "further.txt").touch()


def emptied(folder: Path) -> None:
    (folder / "file.txt").unlink()


@pytest.mark.parametrize("harm", [tampered, enlarged, emptied, shutil.rmtree])
def test_a_stage_is_redone_when_its_folder_was(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    work = Recorder()
    first = once(tmp_path, work)
    harm(first.folder)
    again = once(tmp_path, work)
    assert work.found == [[], []]
    assert again.digest == first.digest == sha256_tree(first.folder)


def test_a_folder_without_its_marker_is_not_trusted(tmp_path: Path) -> None:
    work = Recorder()
    once(tmp_path, work)
    (tmp_path / ".stages" / "stage.json").unlink()
    once(tmp_path, work)
    assert work.found == [[], []]


def test_a_new_result_replaces_the_whole_of_the_old_one(tmp_path: Path) -> None:
    def other(out: Path, progress: Progress) -> None:
        (out / "other.txt").touch()

    once(tmp_path, Recorder())
    done = once(tmp_path, other, settings={"seed": 1})
    assert [path.name for path in done.folder.iterdir()] == ["other.txt"]
    assert not list(tmp_path.glob("*.old"))


def test_what_was_left_of_the_same_stage_is_handed_on(tmp_path: Path) -> None:
    with pytest.raises(BrokenError):
        once(tmp_path, broken_after(Recorder()))
    work = Recorder()
    once(tmp_path, work)
    assert work.found == [["file.txt"]]


def test_what_was_left_of_the_stage_with_other_settings_is_wiped(tmp_path: Path) -> None:
    with pytest.raises(BrokenError):
        once(tmp_path, broken_after(Recorder()))
    work = Recorder()
    once(tmp_path, work, settings={"seed": 1})
    assert work.found == [[]]


def test_what_was_left_without_a_word_of_its_settings_is_wiped(tmp_path: Path) -> None:
    (tmp_path / "stage.partial").mkdir()
    (tmp_path / "stage.partial" / "unknown.txt").touch()
    work = Recorder()
    once(tmp_path, work)
    assert work.found == [[]]


def test_an_exception_leaves_the_older_result_and_every_earlier_stage_valid(tmp_path: Path) -> None:
    earlier, work = Recorder(), Recorder()
    Runner(tmp_path, Listener())("earlier", earlier, {}, SETTINGS)
    once(tmp_path, work)
    with pytest.raises(BrokenError):
        once(tmp_path, broken_after(Recorder("half")), settings={"seed": 1})
    Runner(tmp_path, Listener())("earlier", earlier, {}, SETTINGS)
    assert (tmp_path / "stage" / "file.txt").read_text() == "content"
    once(tmp_path, work)
    assert (len(earlier.found), len(work.found)) == (1, 1)


def test_kill_9_in_a_stage_leaves_the_earlier_ones_valid_and_hands_the_rest_on(tmp_path: Path) -> None:
    script = """
        import sys, time
        from pathlib import Path
        from loop_parts import Listener
        from taskmem.loop.runner import Runner

        def first(out, progress):
            (out / "file.txt").write_text("content")

        def second(out, progress):
            (out / "half.txt").touch()
            time.sleep(60)

        runner = Runner(Path(sys.argv[1]), Listener())
        runner("second", second, {"first": runner("first", first, {}, {"seed": 0})}, {"seed": 0})
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        env={"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"},
    )
    half = tmp_path / "second.partial" / "half.txt"
    while not half.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL

    display, work = Listener(), Recorder()
    runner = Runner(tmp_path, display)
    first = runner("first", Recorder(), {}, SETTINGS)
    runner("second", work, {"first": first}, SETTINGS)
    assert (display.unchanged, display.ran) == (["first"], ["second"])
    assert work.found == [["half.txt"]]


def test_the_bytes_of_a_write_that_a_kill_cut_off_do_not_stay_in_the_result(tmp_path: Path) -> None:
    def cut_off(out: Path, progress: Progress) -> None:
        # what taskmem.files.atomic_write leaves when the process dies within it
        (out / f".file.txt.{'0' * 32}.tmp").write_text("cont")
        raise BrokenError

    uninterrupted = once(tmp_path / "a", Recorder())
    with pytest.raises(BrokenError):
        once(tmp_path / "b", cut_off)
    assert once(tmp_path / "b", Recorder()).digest == uninterrupted.digest


def test_the_seconds_of_a_skipped_stage_are_those_it_once_took(tmp_path: Path) -> None:
    def slow(out: Path, progress: Progress) -> None:
        time.sleep(0.05)

    def seconds() -> dict[str, float]:
        runner = Runner(tmp_path, Listener())
        runner("slow", slow, {}, SETTINGS)
        runner("quick", Recorder(), {}, SETTINGS)
        return runner.seconds

    first = seconds()
    assert list(first) == ["slow", "quick"]
    assert first["slow"] >= 0.05 > first["quick"]
    assert seconds() == first


def test_two_stages_do_not_see_each_other(tmp_path: Path) -> None:
    runner = Runner(tmp_path, Listener())
    left, right = Recorder("left"), Recorder("right")
    runner("group/left", left, {}, SETTINGS)
    runner("group/right", right, {}, SETTINGS)
    assert left.found == right.found == [[]]
    (tmp_path / "group/left/file.txt").write_text("somebody's")
    display = Listener()
    again = Runner(tmp_path, display)
    again("group/left", left, {}, SETTINGS)
    again("group/right", right, {}, SETTINGS)
    assert (display.ran, display.unchanged) == (["group/left"], ["group/right"])


def test_the_marker_holds_key_digest_and_seconds(tmp_path: Path) -> None:
    done = once(tmp_path, Recorder())
    marker = json.loads((tmp_path / ".stages" / "stage.json").read_text())
    assert marker == {"key": marker["key"], "digest": done.digest, "seconds": done.seconds}
    assert len(marker["key"]) == 64
