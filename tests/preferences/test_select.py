"""Pair selection against brute force over all paths, the rules one by one, several pairs, and the random control."""

from collections import Counter
from itertools import pairwise, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskmem.preferences import MinedCandidate, random_pairs, select, select_pair
from taskmem.records import Comparison, Judge, Preference

JUDGE = Judge(role="helpfulness", model="test", prompt_sha256="0" * 64)
BOUND = 20


def candidate(index, memory=None, tokens=10, good=True, context="c"):
    return MinedCandidate(context, index, f"memory {index}" if memory is None else memory, tokens, good)


def comparison(a, b, first="a", second=None, questions=("q1",), context="c"):
    second = first if second is None else second
    return Comparison(
        context=context, a=a, b=b, questions=questions, first_order=first, second_order=second, judge=JUDGE
    )


def beats(winner, loser):
    return comparison(winner, loser)


@st.composite
def contexts(draw):
    """Up to seven candidates, some with the same text, and comparisons of any of them, contradictions included."""
    texts = draw(st.lists(st.sampled_from("ABCDEFG"), min_size=0, max_size=7))
    indices = draw(st.permutations(range(len(texts))))
    tokens = {text: draw(st.integers(1, 6)) for text in "ABCDEFG"}
    good = {text: draw(st.integers(0, 3)) > 0 for text in "ABCDEFG"}
    candidates = [candidate(i, t, tokens[t], good[t]) for i, t in zip(indices, texts, strict=True)]
    if len(texts) < 2:
        return candidates, []
    ends = st.tuples(st.sampled_from(indices), st.sampled_from(indices)).filter(lambda e: e[0] != e[1])
    verdict = st.sampled_from(
        [("a", "a"), ("a", "a"), ("b", "b"), ("b", "b"), ("tie", "tie"), ("a", "b"), ("a", "tie")]
    )
    asked = draw(st.lists(st.tuples(ends, verdict), max_size=18))
    return candidates, [comparison(a, b, first, second) for (a, b), (first, second) in asked]


def brute_force(candidates, comparisons, bound):
    """All admissible pairs, the best first, by enumerating every sequence of nodes; shares no code with the library."""
    lowest = {c.memory: min((d for d in candidates if d.memory == c.memory), key=lambda d: d.index) for c in candidates}
    node = {c.index: lowest[c.memory] for c in candidates}
    edges = set()
    for each in comparisons:
        if each.first_order == each.second_order in ("a", "b"):
            w, loser = (each.a, each.b) if each.first_order == "a" else (each.b, each.a)
            if node[w] != node[loser] and (node[w].quality_ok or not node[loser].quality_ok):
                edges.add((node[loser], node[w]))
    nodes = list(lowest.values())
    paths = [
        p
        for size in range(2, len(nodes) + 1)
        for p in permutations(nodes, size)
        if all(step in edges for step in pairwise(p))
    ]
    back = {(p[-1], p[0]) for p in paths}
    dag = edges - back
    options = [
        (-(len(p) - 1), abs(p[0].memory_tokens - p[-1].memory_tokens), p[0].index, p[-1].index)
        for p in paths
        if all(step in dag for step in pairwise(p))
        and not any(tail == p[-1] for tail, _ in dag)
        and (p[0].quality_ok or p[-1].quality_ok)
        and abs(p[0].memory_tokens - p[-1].memory_tokens) < bound
    ]
    longest = {option[2:]: option for option in sorted(options, reverse=True)}
    return sorted(longest.values())


def keys(pairs):
    return [(-p.path_length, p.token_difference, p.rejected, p.chosen) for p in pairs]


@settings(max_examples=300)
@given(contexts(), st.integers(1, 5))
def test_the_pair_is_the_one_that_brute_force_over_all_paths_finds(context, bound):
    candidates, comparisons = context
    assert keys(select(candidates, comparisons, bound).preferences) == brute_force(candidates, comparisons, bound)[:1]


@settings(max_examples=300)
@given(contexts(), st.integers(1, 5), st.one_of(st.none(), st.integers(1, 6)))
def test_several_pairs_are_the_best_of_those_that_brute_force_finds(context, bound, most):
    candidates, comparisons = context
    found = select(candidates, comparisons, bound, most).preferences
    assert keys(found) == brute_force(candidates, comparisons, bound)[:most]


@given(contexts(), st.one_of(st.none(), st.integers(1, 6)))
def test_the_first_of_several_pairs_is_the_only_one_of_one_and_none_comes_twice(context, most):
    several = select(*context, BOUND, most)
    alone = select(*context, BOUND)
    assert several.preferences[:1] == alone.preferences
    assert several.reason == alone.reason
    assert next(iter(several.preferences), None) == select_pair(*context, BOUND)
    ends = [(pair.chosen, pair.rejected) for pair in several.preferences]
    assert len(set(ends)) == len(ends)
    # no memory is preferred in one pair and rejected in another
    assert {chosen for chosen, _ in ends}.isdisjoint(rejected for _, rejected in ends)


@given(contexts(), st.integers(1, 5))
def test_every_one_of_several_pairs_is_admissible(context, bound):
    candidates, comparisons = context
    by_index = {c.index: c for c in candidates}
    for pair in select(candidates, comparisons, bound, None).preferences:
        chosen, rejected = by_index[pair.chosen], by_index[pair.rejected]
        assert chosen.quality_ok
        assert chosen.memory != rejected.memory
        assert pair.token_difference == abs(chosen.memory_tokens - rejected.memory_tokens) < bound
        assert pair.questions == select_pair(candidates, comparisons, bound).questions


def test_several_pairs_stand_from_the_longest_path_to_the_shortest():
    candidates = [candidate(0), candidate(1, tokens=12), candidate(2), candidate(3)]
    chain = [beats(3, 2), beats(2, 1), beats(1, 0)]
    pairs = select(candidates, chain, BOUND, None).preferences
    assert [(p.chosen, p.rejected, p.path_length) for p in pairs] == [(3, 0, 3), (3, 1, 2), (3, 2, 1)]
    assert select(candidates, chain, BOUND, 2).preferences == pairs[:2]


@given(contexts(), st.randoms(use_true_random=False))
def test_the_pairs_do_not_depend_on_the_order_of_candidates_or_comparisons(context, random):
    candidates, comparisons = context
    before = select(candidates, comparisons, 3, None)
    random.shuffle(candidates)
    random.shuffle(comparisons)
    assert select(candidates, comparisons, 3, None) == before


@given(contexts())
def test_the_chosen_memory_is_always_of_good_quality_and_differs_from_the_rejected(context):
    pair = select_pair(*context, BOUND)
    by_index = {c.index: c for c in context[0]}
    if pair is not None:
        assert by_index[pair.chosen].quality_ok
        assert by_index[pair.chosen].memory != by_index[pair.rejected].memory


@given(contexts())
def test_there_is_either_a_pair_or_a_reason(context):
    selection = select(*context, BOUND)
    assert (selection.preferences == ()) != (selection.reason is None)


def test_the_longest_path_wins_and_its_ends_are_the_pair():
    pair = select_pair([candidate(i) for i in range(4)], [beats(1, 0), beats(2, 1), beats(3, 2), beats(3, 0)], BOUND)
    assert pair == Preference(
        context="c", chosen=3, rejected=0, path_length=3, token_difference=0, questions=("q1",), sources=()
    )


def test_a_tie_of_lengths_goes_to_the_smaller_token_difference():
    candidates = [candidate(0, tokens=10), candidate(1, tokens=13), candidate(2, tokens=14)]
    pair = select_pair(candidates, [beats(2, 0), beats(2, 1)], BOUND)
    assert (pair.chosen, pair.rejected, pair.token_difference) == (2, 1, 1)


def test_a_further_tie_goes_to_the_lower_loser_and_then_to_the_lower_winner():
    candidates = [candidate(i) for i in range(4)]
    pair = select_pair(candidates, [beats(3, 1), beats(2, 1), beats(3, 0), beats(2, 0)], BOUND)
    assert (pair.rejected, pair.chosen) == (0, 2)


def test_a_defeated_candidate_is_never_chosen():
    candidates = [candidate(0), candidate(1), candidate(2, tokens=99)]
    assert select(candidates, [beats(1, 0), beats(2, 1)], BOUND).reason == "no_admissible_pair"


def test_the_token_difference_must_stay_below_the_bound():
    def chosen(tokens):
        return select_pair([candidate(0, tokens=10), candidate(1, tokens=tokens)], [beats(1, 0)], BOUND)

    assert chosen(29).token_difference == 19
    assert chosen(30) is None


def test_two_low_quality_memories_make_no_pair():
    candidates = [candidate(0, good=False), candidate(1, good=False)]
    assert select(candidates, [beats(1, 0)], BOUND).reason == "no_admissible_pair"


def test_a_low_quality_memory_may_be_rejected_but_never_wins_over_a_good_one():
    candidates = [candidate(0, good=False), candidate(1)]
    assert select_pair(candidates, [beats(1, 0)], BOUND).chosen == 1
    assert select(candidates, [beats(0, 1)], BOUND).reason == "against_quality"


def test_a_defeat_by_a_low_quality_memory_does_not_count():
    candidates = [candidate(0, good=False), candidate(1), candidate(2)]
    pair = select_pair(candidates, [beats(0, 2), beats(2, 1)], BOUND)
    assert (pair.chosen, pair.rejected) == (2, 1)


def test_preferences_in_a_circle_are_dropped_and_those_outside_it_stay():
    circle = [beats(1, 0), beats(2, 1), beats(0, 2)]
    candidates = [candidate(i) for i in range(4)]
    assert select(candidates, circle, BOUND).reason == "cycles"
    pair = select_pair(candidates, [*circle, beats(3, 2)], BOUND)
    assert (pair.chosen, pair.rejected, pair.path_length) == (3, 2, 1)


def test_a_defeat_inside_a_circle_does_not_count():
    circle = [beats(1, 0), beats(2, 1), beats(0, 2)]
    pair = select_pair([candidate(i) for i in range(4)], [*circle, beats(2, 3)], BOUND)
    assert (pair.chosen, pair.rejected) == (2, 3)


def test_candidates_with_the_same_text_are_one_node_named_by_the_lowest_index():
    candidates = [candidate(0, "x"), candidate(1, "y"), candidate(2, "y"), candidate(3, "z")]
    pair = select_pair(candidates, [beats(2, 0), beats(3, 1)], BOUND)
    assert (pair.chosen, pair.rejected, pair.path_length) == (3, 0, 2)


def test_a_preference_between_equal_texts_says_nothing():
    candidates = [candidate(0, "x"), candidate(1, "x"), candidate(2, "y")]
    assert select(candidates, [beats(1, 0)], BOUND).reason == "no_agreement"


@pytest.mark.parametrize("orders", [("tie", "tie"), ("a", "b"), ("a", "tie")])
def test_a_tie_or_a_contradiction_is_no_preference(orders):
    assert select([candidate(0), candidate(1)], [comparison(0, 1, *orders)], BOUND).reason == "no_agreement"


def test_a_context_without_two_different_memories_or_without_comparisons_says_so():
    assert select([], [], BOUND).reason == "too_few_candidates"
    assert select([candidate(0, "x"), candidate(1, "x")], [], BOUND).reason == "too_few_candidates"
    assert select([candidate(0), candidate(1)], [], BOUND).reason == "no_comparison"


def test_a_pair_carries_the_questions_of_every_comparison_of_its_context():
    asked = [comparison(1, 0, questions=("q1", "q2")), comparison(0, 2, "tie", questions=("q2", "q3"))]
    assert select_pair([candidate(i) for i in range(3)], asked, BOUND).questions == ("q1", "q2", "q3")


@pytest.mark.parametrize("stray", [comparison(0, 9), comparison(0, 1, context="d")])
def test_a_comparison_of_something_else_is_refused(stray):
    with pytest.raises(ValueError, match="does not belong"):
        select([candidate(0), candidate(1)], [stray], BOUND)


def test_candidates_of_two_contexts_are_refused():
    mixed = [candidate(0), candidate(1, context="d")]
    with pytest.raises(ValueError, match="several contexts"):
        select(mixed, [], BOUND)
    with pytest.raises(ValueError, match="several contexts"):
        random_pairs([mixed], BOUND, 1, 0)


groups = st.lists(
    st.lists(st.tuples(st.sampled_from("ABCDE"), st.integers(1, 40), st.booleans()), max_size=6), max_size=5
)


@given(groups, st.integers(1, 25), st.integers(0, 9), st.integers(0, 9), st.sampled_from([1, 2, 3, None]))
def test_a_random_pair_is_two_different_good_memories_within_the_bound(drawn, bound, limit, seed, most):
    made = [
        [candidate(i, t, n, g, context=f"c{k}") for i, (t, n, g) in enumerate(group)] for k, group in enumerate(drawn)
    ]
    by_name = {(c.context, c.index): c for group in made for c in group}
    pairs = random_pairs(made, bound, limit, seed, most)
    assert len(pairs) <= limit
    assert most is None or max(Counter(pair.context for pair in pairs).values(), default=0) <= most
    assert len({(pair.context, frozenset((pair.chosen, pair.rejected))) for pair in pairs}) == len(pairs)
    for pair in pairs:
        w, loser = by_name[pair.context, pair.chosen], by_name[pair.context, pair.rejected]
        assert w.quality_ok and loser.quality_ok and w.memory != loser.memory
        assert pair.token_difference == abs(w.memory_tokens - loser.memory_tokens) < bound


def test_random_pairs_depend_on_the_seed_and_not_on_the_order_of_contexts_or_candidates():
    made = [[candidate(i, context=f"c{k}") for i in range(8)] for k in range(20)]
    pairs = random_pairs(made, BOUND, 10, 0)
    turned = random_pairs([group[::-1] for group in made[::-1]], BOUND, 10, 0)
    assert [p.context for p in pairs] == sorted((p.context for p in pairs), key=lambda c: int(c[1:]))
    assert turned == pairs[::-1]
    assert len(pairs) == 10
    assert random_pairs(made, BOUND, 10, 1) != pairs


def test_several_random_pairs_begin_with_the_one_that_would_be_drawn_alone():
    made = [[candidate(i, context=f"c{k}") for i in range(4)] for k in range(10)]
    alone, several = random_pairs(made, BOUND, 10, 0), random_pairs(made, BOUND, 1000, 0, None)
    assert Counter(p.context for p in several) == {f"c{k}": 6 for k in range(10)}
    first = {}
    for pair in several:
        first.setdefault(pair.context, pair)
    assert list(first.values()) == alone


def test_contexts_are_drawn_until_there_are_enough_random_pairs():
    made = [[candidate(i, context=f"c{k}") for i in range(4)] for k in range(10)]
    counts = Counter(pair.context for pair in random_pairs(made, BOUND, 8, 0, 3))
    assert sorted(counts.values()) == [2, 3, 3]
    one_each = {pair.context for pair in random_pairs(made, BOUND, 3, 0)}
    assert set(counts) == one_each


def test_random_pairs_are_drawn_evenly():
    made = [[candidate(i, context=f"c{k}") for i in range(3)] for k in range(1200)]
    counts = Counter((pair.chosen, pair.rejected) for pair in random_pairs(made, BOUND, 1200, 0))
    assert len(counts) == 6
    # Five standard deviations of a binomial with 1200 draws and p = 1/6 are 65.
    assert all(135 <= count <= 265 for count in counts.values())
