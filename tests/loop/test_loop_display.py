"""The stages on a console that is no terminal, one plain line each, and on a terminal, where several may be live."""

import io
import re
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from taskmem.loop.display import WIDTH, StageDisplay


@pytest.fixture
def log() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def display(log: io.StringIO) -> StageDisplay:
    return StageDisplay(Console(file=log, width=80))


@pytest.fixture
def screen() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def live(screen: io.StringIO) -> StageDisplay:
    return StageDisplay(Console(file=screen, width=80, force_terminal=True, color_system=None))


def frames(screen: io.StringIO) -> list[str]:
    """What was on the screen, line by line, without the codes that move the cursor."""
    return re.sub(r"\x1b\[[0-?]*[ -/]*[@-~]", "\n", screen.getvalue()).replace("\r", "\n").split("\n")


def test_a_finished_stage_is_one_line_with_its_seconds(display: StageDisplay, log: io.StringIO) -> None:
    with display.stage("phase_one") as progress:
        progress(1, 2)
        assert log.getvalue() == ""
    assert log.getvalue().split() == ["phase_one", "done", "0.0", "s"]
    assert log.getvalue().count("\n") == 1


def test_a_skipped_stage_is_one_line_that_says_unchanged(display: StageDisplay, log: io.StringIO) -> None:
    display.skipped("phase_one")
    assert log.getvalue().split() == ["phase_one", "unchanged"]


def test_a_stage_that_fails_is_not_called_done(display: StageDisplay, log: io.StringIO) -> None:
    with pytest.raises(ZeroDivisionError), display.stage("phase_one"):
        raise ZeroDivisionError
    assert "done" not in log.getvalue()


def test_a_failed_stage_shows_why_its_last_lines_and_its_log(display: StageDisplay, log: io.StringIO) -> None:
    display.failed("phase_one", 12.34, "exit status 1", Path("out/logs/phase_one.log"), ["Traceback:", "  KeyError"])
    assert log.getvalue().splitlines() == [
        f"  {'phase_one':<{WIDTH}} failed      12.3 s  exit status 1",
        "    Traceback:",
        "      KeyError",
        "    log: out/logs/phase_one.log",
    ]


def test_a_reason_that_does_not_fit_beside_the_stage_stands_below_it(display: StageDisplay, log: io.StringIO) -> None:
    reason = "a.jsonl:3: no field `stream`; run the stage that writes it again"
    display.failed("phase_one", 0.1, reason)
    assert log.getvalue().splitlines()[1:] == [f"    {reason}"]


def test_what_a_stage_wrote_cannot_move_the_cursor_or_set_colours(display: StageDisplay, log: io.StringIO) -> None:
    display.failed("phase_one", 0.1, "exit status 1", None, ["\x1b[31mred\x1b[0m [bold]b\x08\tc"])
    assert log.getvalue().splitlines()[1] == "    red [bold]b    c"


def test_a_line_of_any_stage_fits_into_80_columns(display: StageDisplay, log: io.StringIO) -> None:
    name = "streaming_eval/phase_two_random_pairs_of_another_task"
    display.done(name, 99999.9, "attempt 2")
    line = log.getvalue().rstrip("\n")
    assert len(line) <= 80
    assert re.fullmatch(r"  streaming_eval/pha…irs_of_another_task done +99999.9 s  attempt 2", line)


def test_stages_of_several_threads_are_live_at_once(live: StageDisplay, screen: io.StringIO) -> None:
    seen = threading.Event()

    def stage(name: str, done: int) -> None:
        with live.stage(name) as progress:
            progress(done, 10)
            assert seen.wait(10)

    def is_live(name: str, count: str) -> bool:
        return any(re.search(rf"{name} .* {count} +0:00:0", line) for line in frames(screen))

    threads = [threading.Thread(target=stage, args=each) for each in (("left", 3), ("right", 7))]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 9
    while not (is_live("left", "3/10") and is_live("right", "7/10")):
        assert time.monotonic() < until, screen.getvalue()
        time.sleep(0.02)
    seen.set()
    for thread in threads:
        thread.join()
    assert {line.split()[0] for line in frames(screen) if " done " in line} == {"left", "right"}
    assert max(len(line) for line in frames(screen)) <= 80


def test_a_stage_stays_live_when_another_one_ends(live: StageDisplay, screen: io.StringIO) -> None:
    with live.live("long") as progress:
        with live.stage("short"):
            pass
        before = screen.tell()
        progress(1, 2)
        until = time.monotonic() + 9
        while not re.search(r"long .* 1/2", screen.getvalue()[before:]):
            assert time.monotonic() < until, screen.getvalue()
            time.sleep(0.02)
    end = screen.tell()
    live.done("long", 1.0)
    assert screen.getvalue()[end:].split() == ["long", "done", "1.0", "s"]
