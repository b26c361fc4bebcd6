"""preference_mining: judgements and recent questions in, comparisons and preferences out."""

from collections import Counter
from pathlib import Path

from taskmem.config import Profile
from taskmem.errors import UserError
from taskmem.feedback import read_collection
from taskmem.judge.protocols import HelpfulnessJudge
from taskmem.preferences import mine, mined_candidates, random_pairs
from taskmem.records import Judgement, Preference, Rollouts, read_records, write_json, write_records
from taskmem.stages.common import COMPARISONS, JUDGEMENTS, PREFERENCES, ROLLOUTS, SUMMARY, contexts_of, footage


def preference_mining(
    rollouts: Path,
    judgements: Path,
    segments: Path,
    feedback: Path,
    environment: str,
    judge: HelpfulnessJudge,
    profile: Profile,
    seed: int,
    out: Path,
) -> None:
    """Mine the rollout cache with one environment's recent questions.

    Writes `out`/preferences.jsonl, comparisons.jsonl, failures.jsonl and summary.json. UserError if the environment has no
    feedback.
    """
    cached = read_records(rollouts / ROLLOUTS, Rollouts)
    contexts = contexts_of(cached, footage(segments, profile).segments, profile)
    collection = read_collection(feedback)
    if environment not in collection.questions:
        known = ", ".join(collection.questions) or "none"
        raise UserError(f"{feedback}: no questions of environment {environment}; it has those of: {known}")
    outcome = mine(
        contexts,
        cached,
        read_records(judgements / JUDGEMENTS, Judgement),
        collection.questions[environment],
        judge,
        profile.mining,
        seed,
        sources=collection.sources[environment],
    )
    write_records(out / PREFERENCES, outcome.preferences)
    write_records(out / COMPARISONS, outcome.comparisons)
    write_records(out / "failures.jsonl", outcome.failures)
    reasons = Counter(outcome.no_pair.values())
    write_json(
        out / SUMMARY,
        {
            "environment": environment,
            "contexts": outcome.contexts,
            "preferences": len(outcome.preferences),
            "share": outcome.share,
            "comparisons": len(outcome.comparisons),
            "failures": len(outcome.failures),
            "first_failure": outcome.failures[0].reason if outcome.failures else None,
            "no_pair": dict(sorted(reasons.items())),
        },
    )


def random_mining(rollouts: Path, judgements: Path, like: Path, profile: Profile, seed: int, out: Path) -> None:
    """The control: as many random pairs of good candidates as `like`/preferences.jsonl holds mined ones."""
    judged: dict[str, list[Judgement]] = {}
    for judgement in read_records(judgements / JUDGEMENTS, Judgement):
        judged.setdefault(judgement.context, []).append(judgement)
    cached = read_records(rollouts / ROLLOUTS, Rollouts)
    groups = [mined_candidates(r, judged.get(r.context, []), profile.mining) for r in cached]
    wanted = len(read_records(like / PREFERENCES, Preference))
    settings = profile.mining
    drawn = random_pairs(groups, settings.max_token_difference, wanted, seed, settings.pairs_per_context)
    write_records(out / PREFERENCES, drawn)
