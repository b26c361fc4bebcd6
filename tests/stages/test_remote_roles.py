"""Stages whose judges are behind a network: asked over HTTP, paid once, and failed above the set share."""

import json
from pathlib import Path

import pytest
from loopback import Act, Loopback, Seen, call_settings, chat

from taskmem.backends import CALLS
from taskmem.cli import shipped_base
from taskmem.config import Profile, load_profile, override
from taskmem.endpoint.ledger import LEDGER, read_ledger
from taskmem.entry import judge_scoring
from taskmem.records import Judgement, read_records
from taskmem.stages.candidates import rollout_cache
from taskmem.stages.segmentation import segmentation
from taskmem.world.splits import render_split

SIZES = {"stream_segments": 2, "phase_one": 1, "deployment": 1, "development": 1, "held_out": 1}


def judging(seen: Seen) -> Act:
    """Every memory is true, and none says anything again."""
    role = str(seen.body["messages"][0]["content"]).split(",")[0].removeprefix("# ")
    answer = {"fidelity": {"faithful": True, "coherent": True}, "redundancy": {"repeats": False, "forbidden": False}}
    return Act(chat({"reason": "because", **answer[role]}))


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Segments and rollouts of one short stream."""
    root = tmp_path_factory.mktemp("film")
    profile = override(load_profile("miniature"), {"world": SIZES, "mining": {"candidates": 2}}, "the test")
    assert profile.world is not None
    render_split(root / "world", "deployment", profile.world, 0)
    segmentation(root / "world/videos", profile, root / "film")
    rollout_cache(root / "film", shipped_base(), profile, 0, root / "rollouts")
    return root


def remote(server: Loopback, **changes: object) -> str:
    """The profile, as it travels, whose roles are asked at `server`."""
    profile = load_profile("miniature")
    calls = call_settings(server.url, **changes)
    document = {**profile.model_dump(mode="json"), "world": None, "calls": calls.model_dump(mode="json")}
    return Profile.model_validate_json(json.dumps(document)).model_dump_json()


def score(film: Path, profile: str, out: Path) -> list[Judgement]:
    judge_scoring(str(film / "rollouts"), str(film / "film"), None, profile, str(out))
    return read_records(out / "judgements.jsonl", Judgement)


def test_judges_are_asked_over_http_and_a_stage_that_runs_again_asks_nobody(film: Path, tmp_path: Path) -> None:
    with Loopback(judging) as server:
        judged = score(film, remote(server), tmp_path)
        asked = len(server.seen)
        assert asked > 0
        assert score(film, remote(server), tmp_path) == judged
        assert len(server.seen) == asked
    assert any(judgement.faithful for judgement in judged)
    calls = list(read_ledger(tmp_path / CALLS))
    assert sum(call.counted for call in calls) == asked
    assert (tmp_path / CALLS / LEDGER).is_file()


def test_a_stage_fails_when_a_role_fails_too_often_and_what_was_answered_is_kept(
    film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def down(seen: Seen) -> Act:
        return judging(seen) if seen.number == 0 else Act({"error": "down"}, status=500)

    with Loopback(down) as server:
        profile = remote(server, retries=0, invalid_retries=0)
        with pytest.raises(SystemExit) as ended:
            score(film, profile, tmp_path)
        assert ended.value.code == 2
        said = capsys.readouterr().out.splitlines()[-1]
        assert "calls failed" in said
        assert "what was answered is kept" in said
        failed = len(server.seen)
        server.behave = judging
        score(film, profile, tmp_path)
        bodies = [json.dumps(seen.body, sort_keys=True) for seen in server.seen[failed:]]
        assert json.dumps(server.seen[0].body, sort_keys=True) not in bodies
