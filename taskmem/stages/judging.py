"""judge_scoring: what the judges say of every candidate."""

from pathlib import Path

from taskmem.backends import Backends
from taskmem.config import Profile
from taskmem.judge.scoring import judge_group
from taskmem.progress import Progress, silent
from taskmem.records import Judgement, Rollouts, read_records, write_json, write_records
from taskmem.stages.common import JUDGEMENTS, ROLLOUTS, SUMMARY, contexts_of, footage


def judge_scoring(
    rollouts: Path, segments: Path, backends: Backends, profile: Profile, out: Path, progress: Progress = silent
) -> dict[str, float]:
    """Write `out`/judgements.jsonl, one line per candidate, and `out`/summary.json with the shares, which it returns."""
    cached = read_records(rollouts / ROLLOUTS, Rollouts)
    contexts = {c.id: c for c in contexts_of(cached, footage(segments, profile).segments, profile)}
    judgements: list[Judgement] = []
    for number, group in enumerate(cached):
        context = contexts[group.context]
        judgements += judge_group(context, group.candidates, backends.judges, profile.mining.memory_budget)
        progress(number + 1, len(cached))
    write_records(out / JUDGEMENTS, judgements)
    summary = _summary(judgements)
    write_json(out / SUMMARY, summary)
    return summary


def _summary(judgements: list[Judgement]) -> dict[str, float]:
    count = max(1, len(judgements))
    return {
        "candidates": len(judgements),
        "format_rate": sum(j.format_ok for j in judgements) / count,
        "faithful_rate": sum(j.faithful is True for j in judgements) / count,
        "non_redundant_rate": sum(j.non_redundant is True for j in judgements) / count,
        "quality_rate": sum(j.quality_ok for j in judgements) / count,
        "unscored": sum(j.unscored for j in judgements),
    }
