"""From the comparisons of one context to its training pair (METHOD section 4, steps 3 and 4); the random control."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from taskmem.preferences._draw import ticket
from taskmem.preferences.candidates import MinedCandidate, distinct
from taskmem.preferences.graph import Edge, longest_paths, without_cycles
from taskmem.records import Comparison, Preference

NoPair = Literal[
    "too_few_candidates", "no_comparison", "no_agreement", "against_quality", "cycles", "no_admissible_pair"
]
"""Why a context gives no pair, in the order of the steps: the first step that left nothing."""


@dataclass(frozen=True)
class Selection:
    """The pair of one context, or why there is none: exactly one of the two is set."""

    preference: Preference | None = None
    reason: NoPair | None = None


def _agreed(nodes: dict[int, int], comparisons: Sequence[Comparison], context: str) -> set[Edge]:
    edges = set()
    for comparison in comparisons:
        if comparison.context != context or comparison.a not in nodes or comparison.b not in nodes:
            pair = f"{comparison.a} and {comparison.b} of context {comparison.context}"
            raise ValueError(
                f"a comparison of candidates {pair} does not belong to the candidates of context {context}"
            )
        if comparison.winner is not None and comparison.loser is not None:
            edges.add((nodes[comparison.loser], nodes[comparison.winner]))
    return {(loser, winner) for loser, winner in edges if loser != winner}


def _best(dag: set[Edge], by_index: dict[int, MinedCandidate], bound: int) -> tuple[int, int, int, int] | None:
    defeated = {loser for loser, _ in dag}
    options = []
    for (loser, winner), length in longest_paths(dag).items():
        low, high = by_index[loser], by_index[winner]
        difference = abs(high.memory_tokens - low.memory_tokens)
        if winner not in defeated and (low.quality_ok or high.quality_ok) and difference < bound:
            options.append((-length, difference, loser, winner))
    return min(options, default=None)


def _first_empty(comparisons: Sequence[Comparison], agreed: set[Edge], kept: set[Edge], dag: set[Edge]) -> NoPair:
    if not comparisons:
        return "no_comparison"
    if not agreed:
        return "no_agreement"
    if not kept:
        return "against_quality"
    return "no_admissible_pair" if dag else "cycles"


def select(
    candidates: Sequence[MinedCandidate], comparisons: Sequence[Comparison], max_token_difference: int
) -> Selection:
    """The pair of one context, or the reason for none (METHOD section 4, steps 3 and 4; arXiv:2605.31075).

    Candidates with the same memory text are one node, spoken for by the lowest index. Agreed comparisons are edges from
    loser to winner; an edge is kept if the winner's quality is not below the loser's; edges inside a strongly connected
    component are dropped. On the DAG that is left, the winner is a node that no edge leaves: a defeat that the quality
    rule or a cycle took out does not count against it. The loser reaches it by a path, not both are low-quality, and
    their memories differ by fewer than `max_token_difference` tokens. Of all such pairs the one with the longest path
    in edges is taken; ties go to the smaller token difference, then to the lower index of the loser, then of the
    winner. The pair carries the questions of all the comparisons, since each of them could have changed it.

    Raises ValueError for candidates of several contexts, or comparisons of anything else than these candidates.
    """
    unique = distinct(candidates)
    by_index = {candidate.index: candidate for candidate in unique.values()}
    if len({candidate.context for candidate in candidates}) > 1:
        raise ValueError("the candidates belong to several contexts; select from one context at a time")
    if len(unique) < 2:
        return Selection(reason="too_few_candidates")
    context = candidates[0].context
    agreed = _agreed({c.index: unique[c.memory].index for c in candidates}, comparisons, context)
    kept = {edge for edge in agreed if by_index[edge[1]].quality_ok >= by_index[edge[0]].quality_ok}
    dag = without_cycles(kept)
    best = _best(dag, by_index, max_token_difference)
    if best is None:
        return Selection(reason=_first_empty(comparisons, agreed, kept, dag))
    length, difference, loser, winner = best
    return Selection(
        Preference(
            context=context,
            chosen=winner,
            rejected=loser,
            path_length=-length,
            token_difference=difference,
            questions=tuple(dict.fromkeys(q for comparison in comparisons for q in comparison.questions)),
        )
    )


def select_pair(
    candidates: Sequence[MinedCandidate], comparisons: Sequence[Comparison], max_token_difference: int
) -> Preference | None:
    """The pair of one context, or None; see `select`."""
    return select(candidates, comparisons, max_token_difference).preference


def random_pairs(
    groups: Iterable[Sequence[MinedCandidate]], max_token_difference: int, limit: int, seed: int
) -> list[Preference]:
    """The control without a judge: in each context a random ordered pair of different memories, both of good quality.

    The token bound is that of `select`. One group holds the candidates of one context. Where more than `limit` contexts
    have such a pair, `limit` of them are drawn. Both draws depend on the seed and on the context's id, not on the order
    of the groups; the result keeps that order. `path_length` is 0 and there are no questions. Raises ValueError for a
    group of several contexts.
    """
    found: list[Preference] = []
    for group in groups:
        if len({candidate.context for candidate in group}) > 1:
            raise ValueError("a group holds candidates of several contexts; give one group for each context")
        good = list(distinct(candidate for candidate in group if candidate.quality_ok).values())
        options = [
            (ticket(seed, "control pair", w.context, w.index, loser.index), w, loser)
            for w in good
            for loser in good
            if w is not loser and abs(w.memory_tokens - loser.memory_tokens) < max_token_difference
        ]
        if options:
            _, winner, loser = min(options, key=lambda option: option[0])
            difference = abs(winner.memory_tokens - loser.memory_tokens)
            found.append(
                Preference(
                    context=winner.context,
                    chosen=winner.index,
                    rejected=loser.index,
                    path_length=0,
                    token_difference=difference,
                )
            )
    tickets = {pair.context: ticket(seed, "control context", pair.context) for pair in found}
    drawn = set(sorted(tickets, key=tickets.__getitem__)[:limit])
    return [pair for pair in found if pair.context in drawn]
