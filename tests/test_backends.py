"""Which back ends a profile chooses."""

import os
from pathlib import Path

import pytest
from loopback import Act, Loopback, chat

from taskmem.backends import backends_for, helpfulness_judge, open_remote
from taskmem.config import Profile, load_profile
from taskmem.errors import UserError
from taskmem.records import Context, Segment
from taskmem.roles import CallSettings

MINIATURE = load_profile("miniature")
PAPER = load_profile("qwen3-vl-30b")
CONTEXT = Context(
    segments=(
        Segment(
            stream="s",
            index=0,
            start_s=0.0,
            end_s=10.0,
            source="s.mp4",
            clip="s/0.mp4",
            fps=2.0,
            width=6,
            height=4,
            sha256="0" * 64,
        ),
    )
)
VARIABLE = "TASKMEM_JUDGE_API_KEY"


def at(profile: Profile, url: str) -> Profile:
    """The profile with every judge at `url`."""
    assert profile.calls is not None
    roles = {name: role.model_copy(update={"base_url": url}) for name, role in profile.calls.roles.items()}
    calls: CallSettings = profile.calls.model_copy(update={"roles": roles})
    return profile.model_copy(update={"calls": calls})


def test_the_miniature_asks_nobody(tmp_path: Path) -> None:
    assert open_remote(MINIATURE, tmp_path / "calls", tmp_path) is None
    assert not (tmp_path / "calls").exists()
    assert helpfulness_judge(MINIATURE).identity.model == "rendered-world-v1"


def test_the_30b_profile_asks_over_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "secret")
    with Loopback(lambda _: Act(chat({"reason": "", "repeats": False, "forbidden": False}))) as server:
        profile = at(PAPER, server.url)
        remote = open_remote(profile, tmp_path / "calls", tmp_path)
        assert remote is not None
        with remote.endpoint:
            backends = backends_for(profile, None, remote)
            assert backends.judges.redundancy.non_redundant(CONTEXT, "a dog")
            assert helpfulness_judge(profile, remote).identity.role == "helpfulness"
    assert server.seen[0].headers["authorization"] == "Bearer secret"
    assert server.seen[0].body["model"] == backends.judges.redundancy.identity.model


def test_what_only_a_world_has_is_not_made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "secret")
    remote = open_remote(PAPER, tmp_path, tmp_path)
    assert remote is not None
    with remote.endpoint:
        backends = backends_for(PAPER, None, remote)
        with pytest.raises(UserError, match="no ground truth"):
            backends.checker.check("s", 0, "a dog")
        with pytest.raises(UserError, match="no strong model"):
            backends.strong(0)


def test_a_missing_key_is_named_before_anything_is_asked(tmp_path: Path) -> None:
    assert VARIABLE not in os.environ
    with pytest.raises(UserError, match=f"environment variable {VARIABLE}"):
        open_remote(PAPER, tmp_path, tmp_path)


def test_a_profile_without_world_and_endpoint_says_so() -> None:
    with pytest.raises(UserError, match="set `calls`, or use --profile miniature"):
        backends_for(PAPER, None)
    with pytest.raises(UserError, match="set `calls`, or use --profile miniature"):
        helpfulness_judge(PAPER)
