"""The four splits on disk."""

from pathlib import Path

import pytest

from taskmem.config import WorldSettings
from taskmem.files import sha256_tree
from taskmem.records import Question, read_records
from taskmem.world.facts import TYPES
from taskmem.world.judges import Truth
from taskmem.world.splits import SPLITS, render_split

SETTINGS = WorldSettings(stream_segments=3, phase_one=2, deployment=2, development=2, held_out=2)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    for split in SPLITS:
        render_split(root / split, split, SETTINGS, seed=7)
    return root


def test_a_split_holds_its_videos_their_truth_and_their_questions(world: Path) -> None:
    folder = world / "deployment"
    streams = ["deployment-s7-000", "deployment-s7-001"]
    assert sorted(path.name for path in folder.iterdir()) == ["questions.jsonl", "truth.jsonl", "videos"]
    assert sorted(path.name for path in (folder / "videos").iterdir()) == [f"{stream}.mp4" for stream in streams]
    truths = read_records(folder / "truth.jsonl", Truth)
    assert [(t.stream, t.index) for t in truths] == [(stream, i) for stream in streams for i in range(3)]
    questions = read_records(folder / "questions.jsonl", Question)
    assert len(questions) == 2 * 3 * len(TYPES)
    told = {(t.stream, t.index): t.facts for t in truths}
    assert all(q.answer == told[q.stream, int(q.id.split(".")[1])][q.type] for q in questions)


def test_the_same_seed_gives_the_same_bytes(world: Path, tmp_path: Path) -> None:
    for split in SPLITS:
        render_split(tmp_path / split, split, SETTINGS, seed=7)
    assert sha256_tree(tmp_path) == sha256_tree(world)


def test_another_seed_gives_other_streams(world: Path, tmp_path: Path) -> None:
    render_split(tmp_path, "held_out", SETTINGS, seed=8)
    before, after = (read_records(folder / "truth.jsonl", Truth) for folder in (world / "held_out", tmp_path))
    assert not {t.stream for t in before} & {t.stream for t in after}
    assert [t.facts for t in before] != [t.facts for t in after]


def test_a_stream_depends_on_no_other(world: Path, tmp_path: Path) -> None:
    render_split(tmp_path, "phase_one", SETTINGS.model_copy(update={"phase_one": 1}), seed=7)
    name = "videos/phase_one-s7-000.mp4"
    assert (tmp_path / name).read_bytes() == (world / "phase_one" / name).read_bytes()
    for file in ("truth.jsonl", "questions.jsonl"):
        assert (world / "phase_one" / file).read_bytes().startswith((tmp_path / file).read_bytes())


def test_no_stream_and_no_history_stands_in_two_splits(world: Path) -> None:
    truths = {split: read_records(world / split / "truth.jsonl", Truth) for split in SPLITS}
    streams = [{t.stream for t in of} for of in truths.values()]
    assert sum(map(len, streams)) == len(set.union(*streams)) == 8
    histories = {
        (s, tuple(map(str, (t.facts for t in of if t.stream == s))))
        for of in truths.values()
        for s in {t.stream for t in of}
    }
    assert len({history for _, history in histories}) == 8
    videos = [path.read_bytes() for path in world.glob("*/videos/*.mp4")]
    assert len(set(videos)) == len(videos) == 8


def test_no_question_stands_in_two_splits(world: Path) -> None:
    ids = [q.id for split in SPLITS for q in read_records(world / split / "questions.jsonl", Question)]
    assert len(set(ids)) == len(ids)


def test_progress_counts_streams(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    render_split(tmp_path, "held_out", SETTINGS, seed=0, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="split must be one of phase_one, deployment, development, held_out"):
        render_split(tmp_path, "test", SETTINGS, seed=0)
    assert not any(tmp_path.iterdir())
