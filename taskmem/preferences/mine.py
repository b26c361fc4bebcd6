"""Mining: from the rollout cache and one environment's recent questions to training pairs (METHOD section 4)."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from taskmem.config import MiningSettings
from taskmem.errors import UserError
from taskmem.judge.protocols import HelpfulnessJudge
from taskmem.preferences.candidates import mined_candidates
from taskmem.preferences.compare import ComparisonFailure, ComparisonOutcome, compare_candidates
from taskmem.preferences.select import NoPair, select
from taskmem.records import Comparison, Context, Judgement, Preference, Question, Rollouts


@dataclass(frozen=True)
class MiningOutcome:
    """The pairs, everything the judge said, where it failed, and why each other context gave no pair."""

    preferences: tuple[Preference, ...]
    comparisons: tuple[Comparison, ...]
    failures: tuple[ComparisonFailure, ...]
    no_pair: dict[str, NoPair]

    @property
    def contexts(self) -> int:
        """How many contexts were mined."""
        return len(self._with_pair) + len(self.no_pair)

    @property
    def share(self) -> float:
        """The share of contexts that give a pair (29.17 % in the paper); 0 where there were none."""
        return len(self._with_pair) / self.contexts if self.contexts else 0.0

    @property
    def _with_pair(self) -> set[str]:
        return {preference.context for preference in self.preferences}

    @property
    def reasons(self) -> dict[NoPair, int]:
        """How many contexts gave no pair, by reason, the most frequent first."""
        return dict(sorted(Counter(self.no_pair.values()).items(), key=lambda item: (-item[1], item[0])))


@dataclass(frozen=True)
class _Job:
    context: Context
    rollouts: Rollouts
    judgements: tuple[Judgement, ...]


def _jobs(
    contexts: Iterable[Context],
    rollouts: Iterable[Rollouts],
    judgements: Iterable[Judgement],
    settings: MiningSettings,
) -> list[_Job]:
    by_id = {context.id: context for context in contexts}
    judged: dict[str, list[Judgement]] = {}
    for judgement in judgements:
        judged.setdefault(judgement.context, []).append(judgement)
    jobs: dict[str, _Job] = {}
    for cached in rollouts:
        if cached.context not in by_id:
            raise UserError(
                f"rollouts of context {cached.context}: no such context; give the segments they were drawn from"
            )
        if cached.context in jobs:
            raise UserError(f"rollouts of context {cached.context}: given twice; the cache holds each context once")
        job = _Job(by_id[cached.context], cached, tuple(judged.get(cached.context, ())))
        # Every mistake in the input shows before the first call that costs money.
        mined_candidates(job.rollouts, job.judgements, settings)
        jobs[cached.context] = job
    return list(jobs.values())


def check_questions(questions: Sequence[Question], sources: Mapping[str, Sequence[str]] | None) -> None:
    """UserError unless there are questions, each once and each with its source, where `sources` are given."""
    if not questions:
        raise UserError("no recent questions to mine with; collect feedback first")
    for identity, count in Counter(question.id for question in questions).items():
        if count > 1:
            raise UserError(f"question {identity}: given {count} times; keep one")
        if sources is not None and identity not in sources:
            raise UserError(f"question {identity}: its source is unknown; collect the feedback again")


def _with_sources(pair: Preference, sources: Mapping[str, Sequence[str]] | None) -> Preference:
    known = [] if sources is None else [source for question in pair.questions for source in sources[question]]
    return pair.model_copy(update={"sources": tuple(sorted(known))})


def mine(
    contexts: Iterable[Context],
    rollouts: Iterable[Rollouts],
    judgements: Iterable[Judgement],
    questions: Sequence[Question],
    judge: HelpfulnessJudge,
    settings: MiningSettings,
    seed: int,
    *,
    sources: Mapping[str, Sequence[str]] | None = None,
    workers: int = 1,
) -> MiningOutcome:
    """Mine every context of the rollout cache for its pairs (METHOD section 4, steps 2 to 4; arXiv:2605.31075).

    Rollouts and judgements are joined to contexts by id; the results keep the order of `rollouts`. `questions` are the
    recent ones of one environment. `sources` names the sources of each question: questions are then drawn source by source,
    and a pair names a source once for each of its questions, sorted; without it a pair has none. With `workers` above 1,
    contexts are mined in that many threads and the judge must be thread-safe; the results are the same.

    Raises UserError, before the judge is first asked, for missing or repeated questions, sources, contexts, rollouts or
    judgements.
    """
    check_questions(questions, sources)
    jobs = _jobs(contexts, rollouts, judgements, settings)

    def compare(job: _Job) -> ComparisonOutcome:
        return compare_candidates(job.context, job.rollouts, job.judgements, questions, judge, settings, seed, sources)

    if workers == 1:
        outcomes = [compare(job) for job in jobs]
    else:
        with ThreadPoolExecutor(workers) as pool:
            outcomes = list(pool.map(compare, jobs))

    preferences: list[Preference] = []
    no_pair: dict[str, NoPair] = {}
    for job, outcome in zip(jobs, outcomes, strict=True):
        bounds = (settings.max_token_difference, settings.pairs_per_context)
        selection = select(outcome.candidates, outcome.comparisons, *bounds)
        if selection.reason is not None:
            no_pair[job.rollouts.context] = selection.reason
        preferences += [_with_sources(pair, sources) for pair in selection.preferences]
    return MiningOutcome(
        preferences=tuple(preferences),
        comparisons=tuple(c for outcome in outcomes for c in outcome.comparisons),
        failures=tuple(f for outcome in outcomes for f in outcome.failures),
        no_pair=no_pair,
    )
