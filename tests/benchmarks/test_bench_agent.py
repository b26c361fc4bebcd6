"""The agent's benchmark runs on both databases, and its ratios are those of its curves."""

from pathlib import Path

import pytest

from benchmarks import agent
from benchmarks.postgresql import installed
from taskmem.agent.clips import ClipMaker
from taskmem.agent.remembered import memories_after, stream_of
from taskmem.config import load_profile


@pytest.mark.parametrize("databases", [pytest.param("both", marks=() if installed() else pytest.mark.system)])
def test_it_takes_both_curves_on_both_databases(databases: str, capsys: pytest.CaptureFixture[str]) -> None:
    agent.main(longest=30, save=False)
    said = capsys.readouterr().out
    assert all(f"{name}_question_exponent" in said for name in ("sqlite", "postgresql"))


def test_ratios_are_of_the_last_point_over_the_first() -> None:
    curves = {"segment_ms": {"10": 2.0, "1000": 3.0}, "question_ms": {"10": 1.0, "1000": 10.0}}
    assert agent.ratios_of({"sqlite": curves}, [10, 1000]) == {
        "sqlite_segment_last_over_first": 1.5,
        "sqlite_question_last_over_first": 10.0,
        "sqlite_question_exponent": 0.5,
    }


def test_what_is_stored_in_bulk_is_what_is_stored_one_by_one(tmp_path: Path) -> None:
    profile = load_profile("miniature")
    clip = agent.rendered_clip(tmp_path)
    kept = []
    for name, one_by_one in (("a", True), ("b", False)):
        with (
            ClipMaker(profile.video, 1, 60.0) as clips,
            agent.opened(f"sqlite:///{tmp_path}/{name}.db", clips, profile, clip) as side,
        ):
            if one_by_one:
                side.ingest(6)
            else:
                side.fill(6)
            with side.storage.reading() as connection:
                stream = stream_of(connection, agent.ENVIRONMENT, agent.STREAM)
                assert stream is not None
                told = memories_after(connection, stream, None, 9)
                kept.append((stream, [(m.index, m.start_s, m.end_s, m.text) for m in told]))
    assert kept[0] == kept[1]
