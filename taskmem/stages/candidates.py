"""rollout_cache: candidates per context from the frozen policy."""

from contextlib import suppress
from pathlib import Path

from taskmem.config import Profile
from taskmem.errors import UserError
from taskmem.files import canonical_json, sha256_bytes
from taskmem.policy.renderer import PROMPT_VERSION
from taskmem.policy.rollout_cache import build_rollouts
from taskmem.progress import Progress, silent
from taskmem.records import Rollouts, dump_record, parse_line, write_records
from taskmem.stages.common import ROLLOUTS, footage
from taskmem.stages.policies import frozen_policy
from taskmem.store import AlreadyExists, KeyMissing, Store


def rollout_cache(
    segments: Path,
    policy: Path,
    profile: Profile,
    seed: int,
    out: Path,
    progress: Progress = silent,
    store: Store | None = None,
) -> None:
    """Write `out`/rollouts.jsonl: N candidates for each context of the segments, from the policy without adapter.

    Candidates that `store` holds are taken from there, others are sampled and put there.
    """
    film = footage(segments, profile)
    sampling = canonical_json([PROMPT_VERSION, profile.policy.model_dump(mode="json"), profile.mining.candidates, seed])
    with frozen_policy(policy, profile, film, segments, out) as frozen:
        kept = StoredRollouts(store, frozen.digest, sha256_bytes(sampling)) if store else None
        cached, _ = build_rollouts(frozen, film.segments, profile, seed, progress, kept)
    write_records(out / ROLLOUTS, cached)


class StoredRollouts:
    """Implements `KeptRollouts` in an object store, for one policy and one way of sampling."""

    def __init__(self, store: Store, policy: str, sampling: str) -> None:
        self._store = store
        self._prefix = f"rollouts/{policy}/{sampling}/"

    def get(self, context: str) -> Rollouts | None:
        """See `KeptRollouts.get`; UserError if the object holds something else."""
        try:
            data = self._store.get(self._key(context)).data
        except KeyMissing:
            return None
        rollouts = parse_line(data.decode(), Rollouts, self._key(context))
        if rollouts.context != context:
            raise UserError(
                f"{self._key(context)}: holds the candidates of context {rollouts.context}; delete the object"
            )
        return rollouts

    def keep(self, rollouts: Rollouts) -> Rollouts:
        """See `KeptRollouts.keep`."""
        with suppress(AlreadyExists):
            self._store.put_if_absent(self._key(rollouts.context), dump_record(rollouts).encode())
        return self.get(rollouts.context) or rollouts

    def _key(self, context: str) -> str:
        return self._prefix + context.replace(":", "/")
