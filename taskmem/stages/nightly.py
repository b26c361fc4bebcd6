"""feedback_collection, preference_mining and phase_two_dpo for a shard of environments."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from taskmem.config import Profile
from taskmem.erasure import tombstones
from taskmem.errors import UserError
from taskmem.feedback import Collection, parse_watermark
from taskmem.judge.protocols import HelpfulnessJudge
from taskmem.lineage.outcome import Outcome
from taskmem.progress import Note, Progress, silent
from taskmem.records import Preference, read_json, read_records, write_json
from taskmem.registry import watermark
from taskmem.stages.collect import collect_environment, has_feedback, open_events
from taskmem.stages.common import PREFERENCES, SUMMARY
from taskmem.stages.mining import preference_mining, random_mining
from taskmem.stages.shard import EnvironmentSpec, Shard, SkipError, log, ready, run_shard
from taskmem.store import open_store

if TYPE_CHECKING:
    from taskmem.phase_two.frozen import FrozenPolicy

SINCE = "since.json"


@dataclass(frozen=True)
class Learning:
    """What a shard learns from: folders of its feedback, and of the candidates all environments share."""

    feedback: Path
    rollouts: Path
    judgements: Path
    segments: Path


def collect_shard(shard: Shard, events: str | Path, store: str, profile: Profile, out: Path) -> list[Outcome]:
    """Collect each environment's recent questions from `events`/<environment>.jsonl, or from its parts in the store `events`.

    Skips an environment with fewer than `adaptation.new_questions` since its watermark in `store` ("" for none), which
    moves when the environment's night is over. What was erased by the tombstones of either store is not collected.
    """
    registry, source = open_store(store) if store else None, open_events(events)
    erased = tombstones(registry) if registry else frozenset()
    if not isinstance(source, Path):
        erased |= tombstones(source)
    elif not source.is_dir():
        raise UserError(
            f"{events}: no folder of feedback logs; give the one that the agent writes <environment>.jsonl to"
        )

    def work(spec: EnvironmentSpec, settings: Profile, folder: Path) -> None:
        if not has_feedback(source, spec.environment):
            raise SkipError("no feedback yet")
        known = watermark(registry, spec.environment) if registry else None
        write_json(folder / SINCE, known)
        since = parse_watermark(known, f"watermark of environment {spec.environment}") if known else None
        new = collect_environment(source, spec.environment, since, settings, folder, erased)
        asked = len(new.new(spec.environment))
        if asked < settings.adaptation.new_questions:
            when = "since the last adaptation" if since else "in all"
            needed = settings.adaptation.new_questions
            raise SkipError(f"too little feedback: {asked} questions {when}, needs {needed}{_refusals(new)}")

    return run_shard("feedback_collection", shard, profile, None, out, work)


def _refusals(collected: Collection) -> str:
    if not collected.refused:
        return ""
    first = collected.refused[0]
    return f"; {len(collected.refused)} lines refused, the first {first.file}: {first.reason}"


def mine_shard(
    shard: Shard,
    learning: Learning,
    judge: HelpfulnessJudge,
    profile: Profile,
    seed: int,
    out: Path,
    progress: Progress = silent,
) -> list[Outcome]:
    """Mine each environment's pairs; those of an environment that asks for random ones are as many, drawn at random.

    An environment fails if the judge fails more than the share `gate.unscored` of its comparisons, and is skipped if no
    context gives a pair.
    """

    def work(spec: EnvironmentSpec, settings: Profile, folder: Path) -> None:
        feedback = ready(learning.feedback, spec)
        mined = folder / "mined" if spec.pairs == "random" else folder
        paths = (learning.rollouts, learning.judgements, learning.segments, feedback)
        preference_mining(*paths, spec.environment, judge, settings, seed, mined)
        summary = read_json(mined / SUMMARY)
        asked = summary["comparisons"] + summary["failures"]
        if summary["failures"] > settings.gate.unscored * asked:
            raise UserError(
                f"the helpfulness judge failed {summary['failures']} of {asked} comparisons, the first: "
                f"{summary['first_failure']}; mend the judge and run the night again"
            )
        if not summary["preferences"]:
            raise SkipError(f"no context gave a preference ({summary['no_pair']})")
        if spec.pairs == "random":
            random_mining(learning.rollouts, learning.judgements, mined, settings, seed, folder)

    return run_shard("preference_mining", shard, profile, learning.feedback, out, work, progress)


def train_shard(
    shard: Shard,
    preferences: Path,
    rollouts: Path,
    segments: Path,
    policy: Path,
    profile: Profile,
    seed: int,
    out: Path,
    progress: Progress = silent,
    trunk_cache: Path | None = None,
    note: Note = log,
    by_hand: bool = False,
) -> list[Outcome]:
    """Train `out`/<name> for each environment from its pairs below `preferences`. `progress` counts steps of all.

    What one environment computed of a context serves all others: it lies in the folder `trunk_cache`, which may outlive the job,
    or in a temporary one. `note` is told what became of each. Preferences put together `by_hand` have no outcomes.
    """
    done = 0

    @cache
    def frozen() -> "FrozenPolicy":
        # the other two stages of this file run in images without torch, and an idle shard needs none
        from taskmem.phase_two.frozen import FrozenPolicy  # noqa: PLC0415

        return FrozenPolicy(policy)

    def work(spec: EnvironmentSpec, settings: Profile, folder: Path) -> None:
        nonlocal done
        from taskmem.stages.adapt import phase_two  # noqa: PLC0415

        def step(at: int, of: int) -> None:
            progress(done * of + at, len(shard.environments) * of)

        def tell(line: str) -> None:
            note(f"{spec.name}: {line}")

        pairs = preferences / spec.name if by_hand else ready(preferences, spec)
        phase_two(pairs, rollouts, segments, frozen(), folder.name, settings, seed, folder.parent, step, trunks, tell)
        done += 1

    before = None if by_hand else preferences
    with _shared(trunk_cache, len(shard.environments)) as trunks:
        if trunks is not None and len(shard.environments) > 1:
            _prepare(shard, preferences, by_hand, (rollouts, segments), frozen, profile, trunks, note)
        return run_shard("phase_two_dpo", shard, profile, before, out, work, note=note)


def _prepare(
    shard: Shard,
    preferences: Path,
    by_hand: bool,
    candidates: tuple[Path, Path],
    frozen: Callable[[], "FrozenPolicy"],
    profile: Profile,
    trunks: Path,
    note: Note,
) -> None:
    """Compute the trunks of all environments with one loading of the lower half, where they share a steer layer."""
    by_layer: dict[int, list[tuple[Path, Profile]]] = {}
    for spec in shard.environments:
        # what is wrong with one environment is said when its turn comes
        with suppress(UserError):
            folder = preferences / spec.name if by_hand else ready(preferences, spec)
            read_records(folder / PREFERENCES, Preference)
            settings = spec.profile(profile)
            by_layer.setdefault(settings.phase_two.layer, []).append((folder, settings))
    for several in by_layer.values():
        from taskmem.stages.adapt import prepare  # noqa: PLC0415 - as above, an idle shard needs no torch

        with suppress(UserError):
            prepare([folder for folder, _ in several], *candidates, frozen(), several[0][1], trunks, note)


@contextmanager
def _shared(cache: Path | None, environments: int) -> Iterator[Path | None]:
    """`cache`, else a temporary folder that is gone at the end; none for a single environment, which shares with nobody."""
    if cache is not None or environments < 2:
        yield cache
        return
    with tempfile.TemporaryDirectory(prefix="taskmem-trunks-") as folder:
        yield Path(folder)
