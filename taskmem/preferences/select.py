"""From the comparisons of one context to its training pairs (METHOD section 4, steps 3 and 4); the random control."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
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
    """The pairs of one context, the best first, or why there is none: exactly one of the two is set."""

    preferences: tuple[Preference, ...] = ()
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


def _admissible(dag: set[Edge], by_index: dict[int, MinedCandidate], bound: int) -> list[tuple[int, int, int, int]]:
    """Every admissible pair as (-path length, token difference, loser, winner), the best first."""
    defeated = {loser for loser, _ in dag}
    options = []
    for (loser, winner), length in longest_paths(dag).items():
        low, high = by_index[loser], by_index[winner]
        difference = abs(high.memory_tokens - low.memory_tokens)
        if winner not in defeated and (low.quality_ok or high.quality_ok) and difference < bound:
            options.append((-length, difference, loser, winner))
    return sorted(options)


def _first_empty(comparisons: Sequence[Comparison], agreed: set[Edge], kept: set[Edge], dag: set[Edge]) -> NoPair:
    if not comparisons:
        return "no_comparison"
    if not agreed:
        return "no_agreement"
    if not kept:
        return "against_quality"
    return "no_admissible_pair" if dag else "cycles"


def select(
    candidates: Sequence[MinedCandidate],
    comparisons: Sequence[Comparison],
    max_token_difference: int,
    most: int | None = 1,
) -> Selection:
    """The `most` best pairs of one context (None for all), or the reason for none.

    METHOD section 4, steps 3 and 4 (arXiv:2605.31075); more than one pair is an option of ours.

    Candidates with the same memory text are one node, spoken for by the lowest index. Agreed comparisons are edges from
    loser to winner; an edge is kept if the winner's quality is not below the loser's; edges inside a strongly connected
    component are dropped. On the DAG that is left, the winner is a node that no edge leaves: a defeat that the quality
    rule or a cycle took out does not count against it. The loser reaches it by a path, not both are low-quality, and
    their memories differ by fewer than `max_token_difference` tokens. Of all such pairs those with the longest paths in
    edges come first; ties go to the smaller token difference, then to the lower index of the loser, then of the winner.
    A pair carries the questions of all the comparisons, since each of them could have changed it.

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
    options = _admissible(dag, by_index, max_token_difference)
    if not options:
        return Selection(reason=_first_empty(comparisons, agreed, kept, dag))
    questions = tuple(dict.fromkeys(q for comparison in comparisons for q in comparison.questions))
    return Selection(
        tuple(
            Preference(
                context=context,
                chosen=winner,
                rejected=loser,
                path_length=-length,
                token_difference=difference,
                questions=questions,
            )
            for length, difference, loser, winner in options[:most]
        )
    )


def select_pair(
    candidates: Sequence[MinedCandidate], comparisons: Sequence[Comparison], max_token_difference: int
) -> Preference | None:
    """The best pair of one context, or None; see `select`."""
    return next(iter(select(candidates, comparisons, max_token_difference).preferences), None)


def random_pairs(
    groups: Iterable[Sequence[MinedCandidate]],
    max_token_difference: int,
    limit: int,
    seed: int,
    most: int | None = 1,
) -> list[Preference]:
    """The control without a judge: random ordered pairs of different memories, both of good quality.

    In each context at most `most` (None for all), no two memories paired twice. The token bound is that of `select`. One group
    holds the candidates of one context. Where there are more than `limit` pairs, contexts are drawn until there are so many.
    Both draws depend on the seed and on the context's id, not on the order of the groups; the result keeps that order.
    `path_length` is 0 and there are no questions. Raises ValueError for a group of several contexts.
    """
    found: dict[str, list[Preference]] = {}
    for group in groups:
        if len({candidate.context for candidate in group}) > 1:
            raise ValueError("a group holds candidates of several contexts; give one group for each context")
        if drawn := _drawn(group, max_token_difference, seed)[:most]:
            found[drawn[0].context] = drawn
    left = limit
    for context in sorted(found, key=lambda context: ticket(seed, "control context", context)):
        found[context] = found[context][:left]
        left -= len(found[context])
    return [pair for pairs in found.values() for pair in pairs]


def _drawn(group: Sequence[MinedCandidate], bound: int, seed: int) -> list[Preference]:
    """The random pairs of one context in the order of their lots: of two memories the one order or the other."""
    good = list(distinct(candidate for candidate in group if candidate.quality_ok).values())
    lots = sorted(
        (ticket(seed, "control pair", winner.context, winner.index, loser.index), winner.index, loser.index)
        for winner, loser in permutations(good, 2)
        if abs(winner.memory_tokens - loser.memory_tokens) < bound
    )
    tokens = {candidate.index: candidate.memory_tokens for candidate in good}
    first: dict[frozenset[int], Preference] = {}
    for _, winner, loser in lots:
        pair = Preference(
            context=good[0].context,
            chosen=winner,
            rejected=loser,
            path_length=0,
            token_difference=abs(tokens[winner] - tokens[loser]),
        )
        first.setdefault(frozenset((winner, loser)), pair)
    return list(first.values())
