"""The stages on a console that is no terminal: one plain line each."""

import io

import pytest
from rich.console import Console

from taskmem.loop.display import StageDisplay


@pytest.fixture
def log() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def display(log: io.StringIO) -> StageDisplay:
    return StageDisplay(Console(file=log, width=80))


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
