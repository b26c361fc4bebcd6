"""phase_two_dpo: preferences and the policy in, an adapter out."""

from pathlib import Path

from taskmem.config import Profile
from taskmem.phase_two.train import load_pairs, train_phase_two
from taskmem.policy.transformers_policy import policy_digest, prepare_process
from taskmem.progress import Progress, silent
from taskmem.records import Preference, Rollouts, read_records
from taskmem.stages.common import PREFERENCES, ROLLOUTS, contexts_of, footage


def phase_two(
    preferences: Path,
    rollouts: Path,
    segments: Path,
    policy: Path,
    name: str,
    profile: Profile,
    seed: int,
    out: Path,
    progress: Progress = silent,
    cache: Path | None = None,
) -> None:
    """Train the adapter `out`/`name` from zero on the pairs of `preferences`.

    Trunk states are kept in the folder `cache`, or in memory without one.
    """
    prepare_process()
    cached = read_records(rollouts / ROLLOUTS, Rollouts)
    film = footage(segments, profile)
    contexts = contexts_of(cached, film.segments, profile)
    pairs = load_pairs(read_records(preferences / PREFERENCES, Preference), cached, contexts, policy_digest(policy))
    train_phase_two(policy, pairs, film.frames_of, profile, seed, out / name, progress, cache)
