"""Judgements of a group of candidates: rules first, then the judges; a judge that fails leaves the sample unscored."""

from collections.abc import Sequence
from typing import Protocol

from taskmem.judge.protocols import JudgeError, Judges
from taskmem.policy.grammar import faces_well_formed
from taskmem.records import Context, Judgement


class Written(Protocol):
    """What is judged of a candidate: the memory (None where the grammar is broken) and its length in tokens."""

    @property
    def memory(self) -> str | None: ...  # noqa: D102

    @property
    def memory_tokens(self) -> int: ...  # noqa: D102


def judge_group(context: Context, group: Sequence[Written], judges: Judges, memory_budget: int) -> list[Judgement]:
    """One judgement per candidate, in order (METHOD section 3, r_fmt and r_qual).

    Rules decide the format, the token budget and the face tags; the judges decide the rest. Equal memories are judged once.
    """
    known: dict[str, Judgement] = {}
    judgements = []
    for number, written in enumerate(group):
        if written.memory is None:
            judgements.append(Judgement(context=context.id, candidate=number, format_ok=False, within_budget=False))
            continue
        if written.memory not in known:
            known[written.memory] = _judge(context, number, written.memory, judges)
        own = {"candidate": number, "within_budget": written.memory_tokens <= memory_budget}
        judgements.append(known[written.memory].model_copy(update=own))
    return judgements


def _judge(context: Context, number: int, memory: str, judges: Judges) -> Judgement:
    identities = (judges.fidelity.identity, judges.redundancy.identity)
    try:
        fidelity = judges.fidelity.fidelity(context, memory)
        non_redundant = judges.redundancy.non_redundant(context, memory)
    except JudgeError as error:
        return Judgement(
            context=context.id,
            candidate=number,
            format_ok=True,
            within_budget=True,
            unscored=True,
            reason=str(error) or type(error).__name__,
            judges=identities,
        )
    return Judgement(
        context=context.id,
        candidate=number,
        format_ok=True,
        within_budget=True,
        faithful=fidelity.faithful,
        coherent=fidelity.coherent and faces_well_formed(memory),
        non_redundant=non_redundant,
        judges=identities,
    )
