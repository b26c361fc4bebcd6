"""A second run elsewhere, with videos of a user's that cannot be read: they are named, and change nothing else."""

import pytest
from small_loop import Run, digests, loop, measured

from taskmem.records import Refusal, read_records

REFUSED = {"corrupt.mp4": "not a video", "empty.mp4": "zero bytes"}


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory, finished: Run) -> Run:
    root = tmp_path_factory.mktemp("second")
    videos = root / "videos"
    videos.mkdir()
    (videos / "empty.mp4").touch()
    good = next((finished.out / "world/deployment/videos").glob("*.mp4")).read_bytes()
    (videos / "corrupt.mp4").write_bytes(good[: len(good) // 3])
    return loop(root / "loop", (*finished.options, "--videos", str(videos)))


def test_each_is_named_with_its_reason_in_the_output(second: Run) -> None:
    lines = [line for line in second.output.splitlines() if "refused" in line]
    assert len(lines) == len(REFUSED)
    for line, (name, reason) in zip(lines, REFUSED.items(), strict=True):
        assert name in line
        assert reason in line


def test_each_is_named_with_its_reason_in_refused_jsonl(second: Run) -> None:
    refusals = {r.file: r.reason for r in read_records(second.out / "segments/deployment/refused.jsonl", Refusal)}
    assert refusals.keys() == REFUSED.keys()
    assert all(REFUSED[name] in reason for name, reason in refusals.items())


def test_the_same_seed_gives_the_same_results(second: Run, finished: Run) -> None:
    assert measured(second.out) == measured(finished.out)


def test_the_same_seed_gives_the_same_policy_adapters_and_everything_else_but_the_footage(
    second: Run, finished: Run
) -> None:
    footage = ("world/deployment/videos/", "segments/deployment/refused.jsonl", "segments/deployment/.done/")
    expected = digests(finished.out, *footage)
    assert digests(second.out, *footage) == expected
    assert "phase_one/policy/model.safetensors" in expected
    assert "adapters/phase_two/adapter/adapter_model.safetensors" in expected
