"""phase_two_dpo: preferences and the policy in, an adapter out; or one for each of several environments."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from taskmem.config import Profile
from taskmem.errors import UserError
from taskmem.lineage.outcome import OUTCOMES, Outcome
from taskmem.phase_two.frozen import FrozenPolicy
from taskmem.phase_two.influence import leading
from taskmem.phase_two.train import INFLUENCE, Pair, check_replaceable, load_pairs, prepare_trunks, train_phase_two
from taskmem.policy.transformers_policy import prepare_process
from taskmem.progress import Note, Progress, silent, unheard
from taskmem.records import Preference, Rollouts, one_line, read_json, read_records
from taskmem.stages.common import PREFERENCES, ROLLOUTS, Footage, contexts_of, footage
from taskmem.stages.nightly import train_shard
from taskmem.stages.shard import EnvironmentSpec, Shard

NAMED = 3
DIGITS = 8  # of a source's hash, enough to find it in influence.json


def phase_two(
    preferences: Path,
    rollouts: Path,
    segments: Path,
    policy: FrozenPolicy,
    name: str,
    profile: Profile,
    seed: int,
    out: Path,
    progress: Progress = silent,
    cache: Path | None = None,
    note: Note = unheard,
) -> None:
    """Train the adapter `out`/`name` from zero on the pairs of `preferences`.

    Trunk states are kept in the folder `cache`, or in memory without one. `note` is told how many were computed, and who moved
    the adapter most.
    """
    prepare_process()
    cached = read_records(rollouts / ROLLOUTS, Rollouts)
    film = footage(segments, profile)
    pairs = _pairs([preferences], cached, film, policy, profile)
    adapter = train_phase_two(policy, pairs, film.frames_of, profile, seed, out / name, progress, cache, note)
    if (adapter / INFLUENCE).exists():
        note(f"moved most by {moved_by(adapter)}")


def _pairs(
    preferences: Sequence[Path], cached: list[Rollouts], film: Footage, policy: FrozenPolicy, profile: Profile
) -> list[Pair]:
    contexts = contexts_of(cached, film.segments, profile)
    preferred = [pair for folder in preferences for pair in read_records(folder / PREFERENCES, Preference)]
    return load_pairs(preferred, cached, contexts, policy.checkpoint.digest)


def prepare(
    preferences: Sequence[Path],
    rollouts: Path,
    segments: Path,
    policy: FrozenPolicy,
    profile: Profile,
    cache: Path,
    note: Note,
) -> None:
    """Compute all trunks that the environments of the folders `preferences` lack in the folder `cache`, in one pass."""
    prepare_process()
    cached = read_records(rollouts / ROLLOUTS, Rollouts)
    film = footage(segments, profile)
    pairs = _pairs(preferences, cached, film, policy, profile)
    computed = prepare_trunks(policy, pairs, film.frames_of, profile, cache)
    note(f"{len(preferences)} environments: trunks of {computed} contexts computed")


def moved_by(adapter: Path) -> str:
    """The sources with the largest part in an adapter, by the first digits of their hash, and who pulls against the rest."""
    sources = read_json(adapter / INFLUENCE)["sources"]
    parts = [f"{name[:DIGITS]} {part:.0%}" for name, part in leading(sources, NAMED)]
    others = len(sources) - len(parts)
    against = [name[:DIGITS] for name, of in sources.items() if of["agreement"] < 0]
    dissent = f"; against the others: {', '.join(against[:NAMED])}" if against else ""
    return ", ".join(parts) + (f" and {others} more" if others else "") + dissent


def phase_two_of_each(
    preferences: Path,
    rollouts: Path,
    segments: Path,
    policy: Path,
    names: Sequence[str],
    profile: Profile,
    seed: int,
    out: Path,
    progress: Progress,
    cache: Path | None,
    note: Note,
) -> list[Outcome]:
    """Train `out`/<name> from `preferences`/<name> for each of `names`, and write `out`/outcomes.jsonl.

    `preferences` is what mining wrote for a shard, or was put together by hand and has no outcomes.jsonl. UserError for names
    that are none, and before anything is written if it would replace what is no adapter.
    """
    if not preferences.is_dir():
        raise UserError(
            f"{preferences}: no such folder; give the one whose subfolders hold the environments' preferences"
        )
    if out.resolve() == preferences.resolve():
        raise UserError(f"{out}: holds the preferences; give another --out")
    by_hand = not (preferences / OUTCOMES).exists()
    known = {} if by_hand else {o.name: o.environment for o in read_records(preferences / OUTCOMES, Outcome)}
    try:
        specs = [EnvironmentSpec(environment=known.get(name, name), adapter=name) for name in names]
        shard = Shard(name="phase-two", environments=specs)
    except ValidationError:
        given = one_line(",".join(names))
        raise UserError(
            f"environments {given}: names of folders, none of them twice, are needed; as in a,b,c"
        ) from None
    for name in names:
        check_replaceable(out / name)
    paths = (preferences, rollouts, segments, policy)
    return train_shard(shard, *paths, profile, seed, out, progress, cache, note, by_hand)
