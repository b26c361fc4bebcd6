"""rollout_cache: candidates per context from the frozen policy."""

from pathlib import Path

from taskmem.config import Profile
from taskmem.policy.rollout_cache import build_rollouts
from taskmem.progress import Progress, silent
from taskmem.records import write_records
from taskmem.stages.common import ROLLOUTS, footage
from taskmem.stages.policies import load_policy


def rollout_cache(
    segments: Path, policy: Path, profile: Profile, seed: int, out: Path, progress: Progress = silent
) -> None:
    """Write `out`/rollouts.jsonl: N candidates for each context of the segments, from the policy without adapter."""
    film = footage(segments, profile)
    frozen = load_policy(policy, profile, film.frames_of)
    cached, _ = build_rollouts(frozen, film.segments, profile, seed, progress)
    write_records(out / ROLLOUTS, cached)
