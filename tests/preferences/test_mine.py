"""Comparison and mining with a judge that counts words: what is asked, what a failure does, what the order changes."""

import threading
from collections import Counter

import pytest

from taskmem.config import load_profile
from taskmem.errors import UserError
from taskmem.judge.protocols import JudgeError
from taskmem.preferences import compare_candidates, mine, mined_candidates
from taskmem.preferences.compare import draw_questions
from taskmem.records import Candidate, Context, Judge, Judgement, Question, Rollouts, Segment, dump_record

SETTINGS = load_profile("qwen3-vl-30b").mining


class WordJudge:
    """Prefers the memory with more different words; fails for good on a memory that holds "unreadable"."""

    identity = Judge(role="helpfulness", model="words", prompt_sha256="1" * 64)

    def __init__(self):
        self.asked = []
        self.lock = threading.Lock()

    def compare(self, context, questions, first, second):
        with self.lock:
            self.asked.append((context.id, tuple(questions), first, second))
        if "unreadable" in first:
            raise JudgeError("the endpoint answered 500 four times")
        a, b = len(set(first.split())), len(set(second.split()))
        return "tie" if a == b else "first" if a > b else "second"


class FirstJudge(WordJudge):
    """Always prefers what it is shown first."""

    def compare(self, context, questions, first, second):
        return "first"


def make_context(index=0):
    segment = Segment(
        stream="s", index=index, start_s=index * 10.0, end_s=index * 10.0 + 10, source="s.mp4", fps=1.0, width=64,
        height=64, clip=f"clips/s/{index}.mp4", sha256=f"{index:064x}",
    )  # fmt: skip
    return Context(segments=(segment,))


def make_rollouts(context, memories, tokens=10, think=100):
    candidates = tuple(
        Candidate(index=i, text="raw", memory=memory, think_tokens=think, memory_tokens=tokens)
        for i, memory in enumerate(memories)
    )
    current = context.current
    return Rollouts(
        context=context.id, stream="s", index=current.index, memories=(), candidates=candidates, policy="2" * 64, seed=0
    )


def make_judgements(rollouts, **changes):
    good = {"format_ok": True, "within_budget": True, "faithful": True, "coherent": True, "non_redundant": True}
    return [
        Judgement(context=rollouts.context, candidate=c.index, **{**good, **changes})
        for c in rollouts.candidates
        if c.memory is not None
    ]


def make_questions(count=8):
    return [
        Question(
            id=f"q{i}", environment="kitchen", stream="s", asked_at_s=100.0 + i, type="object", text=f"What is it {i}?",
            answer="a cup", origin="environment",
        )
        for i in range(count)
    ]  # fmt: skip


MEMORIES = ("a", "a b", "a b c", "a b c d")


def compared(memories=MEMORIES, judge=None, seed=0, questions=None, settings=SETTINGS, **budget):
    context = make_context()
    rollouts = make_rollouts(context, memories, **budget)
    asked = make_questions() if questions is None else questions
    return compare_candidates(context, rollouts, make_judgements(rollouts), asked, judge or WordJudge(), settings, seed)


def mined(count=6, memories=MEMORIES, judge=None, reverse=False, seed=0, settings=SETTINGS, **options):
    contexts = [make_context(i) for i in range(count)]
    rollouts = [make_rollouts(c, memories) for c in contexts]
    judgements = [j for r in rollouts for j in make_judgements(r)]
    step = -1 if reverse else 1
    inputs = (contexts[::step], rollouts[::step], judgements[::step], make_questions()[::step])
    return mine(*inputs, judge or WordJudge(), settings, seed, **options)


def test_every_pair_is_asked_twice_with_the_order_swapped():
    judge = WordJudge()
    outcome = compared(("a", "a b", "a b c"), judge)
    shown = [(first, second) for _, _, first, second in judge.asked]
    assert sorted(shown) == sorted([(x, y) for x in ("a", "a b", "a b c") for y in ("a", "a b", "a b c") if x != y])
    assert [(c.a, c.b, c.first_order, c.second_order) for c in outcome.comparisons] == [
        (0, 1, "b", "b"), (0, 2, "b", "b"), (1, 2, "b", "b"),
    ]  # fmt: skip
    assert all(c.judge == judge.identity and c.context == make_context().id for c in outcome.comparisons)


def test_a_judge_that_looks_at_the_position_never_agrees_with_itself():
    outcome = compared(judge=FirstJudge())
    assert {(c.first_order, c.second_order) for c in outcome.comparisons} == {("a", "b")}
    assert mined(judge=FirstJudge()).reasons == {"no_agreement": 6}


def test_identical_memories_are_asked_about_once_under_the_lowest_index():
    outcome = compared(("a b", "a", "a b", "a"))
    assert [(c.a, c.b) for c in outcome.comparisons] == [(0, 1)]
    assert [c.index for c in outcome.candidates] == [0, 1, 2, 3]


def test_a_candidate_without_a_memory_is_not_compared():
    assert [(c.a, c.b) for c in compared(("a", None, "a b")).comparisons] == [(0, 2)]


@pytest.mark.parametrize(
    ("budget", "kept"), [({"tokens": 300, "think": 6400}, 2), ({"tokens": 301}, 0), ({"think": 6401}, 0)]
)
def test_a_candidate_over_a_mining_budget_is_not_compared(budget, kept):
    assert len(compared(("a", "a b"), **budget).candidates) == kept


def test_an_unscored_candidate_is_left_out_and_not_taken_for_a_bad_one():
    rollouts = make_rollouts(make_context(), ("a", "a b"))
    good, bad = make_judgements(rollouts)
    bad = bad.model_copy(update={"faithful": False})
    assert [c.quality_ok for c in mined_candidates(rollouts, [good, bad], SETTINGS)] == [True, False]
    lost = bad.model_copy(update={"unscored": True, "reason": "timeout"})
    assert [c.index for c in mined_candidates(rollouts, [good, lost], SETTINGS)] == [0]


def test_the_candidates_do_not_depend_on_the_order_of_the_cache_nor_on_judgements_of_other_contexts():
    rollouts, other = make_rollouts(make_context(), MEMORIES), make_rollouts(make_context(1), MEMORIES)
    turned = rollouts.model_copy(update={"candidates": rollouts.candidates[::-1]})
    judgements = make_judgements(rollouts)
    foreign = make_judgements(other, faithful=False)
    expected = mined_candidates(rollouts, judgements, SETTINGS)
    assert [c.index for c in expected] == [0, 1, 2, 3]
    assert mined_candidates(turned, [*foreign, *judgements], SETTINGS) == expected


def test_a_failed_judge_gives_a_reason_and_no_comparison_in_whichever_order_it_fails():
    judge = WordJudge()
    outcome = compared(("a", "unreadable", "a b"), judge)
    assert [(c.a, c.b) for c in outcome.comparisons] == [(0, 2)]
    assert [(f.a, f.b, f.reason) for f in outcome.failures] == [
        (0, 1, "the endpoint answered 500 four times"), (1, 2, "the endpoint answered 500 four times"),
    ]  # fmt: skip
    # 0 and 1 failed in the second order, 1 and 2 in the first.
    assert [(first, second) for _, _, first, second in judge.asked if "unreadable" in first + second] == [
        ("a", "unreadable"), ("unreadable", "a"), ("unreadable", "a b"),
    ]  # fmt: skip


def test_an_error_that_is_not_the_judges_is_not_swallowed():
    class Broken(WordJudge):
        def compare(self, context, questions, first, second):
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        compared(judge=Broken())


def test_the_judge_sees_five_of_the_questions_and_none_of_the_answers():
    judge = WordJudge()
    outcome = compared(judge=judge)
    assert {len(questions) for _, questions, _, _ in judge.asked} == {5}
    assert all(q.answer is None and q.origin == "none" for _, questions, _, _ in judge.asked for q in questions)
    assert {c.questions for c in outcome.comparisons} == {tuple(q.id for q in judge.asked[0][1])}


def test_fewer_questions_than_are_shown_are_all_shown():
    assert sorted(compared(questions=make_questions(3)).comparisons[0].questions) == ["q0", "q1", "q2"]


def test_who_asks_more_often_is_not_heard_more_often():
    questions = make_questions(20)
    sources = {f"q{i}": ("loud" if i < 14 else f"user{i}",) for i in range(20)}
    heard = Counter()
    for context in range(200):
        drawn = draw_questions(questions, f"c{context}", 5, 0, sources)
        named = [sources[question.id][0] for question in drawn]
        assert len(set(named)) == 5
        heard.update(named)
    assert 120 < heard["loud"] < 165  # five of seven sources a draw: 143 of 200
    assert draw_questions(questions, "c0", 5, 0) != draw_questions(questions, "c0", 5, 0, sources)
    everybody = draw_questions(questions, "c0", 9, 0, sources)
    assert [sources[question.id][0] for question in everybody].count("loud") == 3


def test_the_draw_of_questions_depends_on_seed_and_context_only():
    first, again, other = mined(), mined(reverse=True), mined(seed=1)
    drawn = {c.context: c.questions for c in first.comparisons}
    assert drawn == {c.context: c.questions for c in again.comparisons}
    assert drawn != {c.context: c.questions for c in other.comparisons}
    assert len(set(drawn.values())) > 1


def test_mining_gives_the_same_bytes_again_and_with_many_threads():
    def lines(outcome):
        return [dump_record(r) for r in (*outcome.preferences, *outcome.comparisons, *outcome.failures)]

    memories = (*MEMORIES, "unreadable")
    assert lines(mined(memories=memories)) == lines(mined(memories=memories))
    assert lines(mined(memories=memories)) == lines(mined(memories=memories, workers=4))


def test_the_richest_memory_is_chosen_over_the_poorest_with_the_longest_path():
    outcome = mined()
    assert {(p.chosen, p.rejected, p.path_length) for p in outcome.preferences} == {(3, 0, 3)}
    assert [p.context for p in outcome.preferences] == [make_context(i).id for i in range(6)]
    assert (outcome.contexts, outcome.share, outcome.no_pair) == (6, 1.0, {})


def test_the_yield_counts_every_context_with_its_reason():
    contexts = [make_context(i) for i in range(4)]
    texts = [("a", "a b"), ("a", "a"), ("a", "b"), ("unreadable", "a")]
    rollouts = [make_rollouts(c, t) for c, t in zip(contexts, texts, strict=True)]
    judgements = [j for r in rollouts for j in make_judgements(r)]
    outcome = mine(contexts, rollouts, judgements, make_questions(), WordJudge(), SETTINGS, 0)
    assert outcome.share == 0.25
    assert outcome.no_pair == {
        contexts[1].id: "too_few_candidates",
        contexts[2].id: "no_agreement",
        contexts[3].id: "no_comparison",
    }
    assert outcome.reasons == {"no_agreement": 1, "no_comparison": 1, "too_few_candidates": 1}
    assert len(outcome.failures) == 1


@pytest.mark.parametrize(("most", "kept"), [(1, 1), (2, 2), (None, 3)])
def test_a_context_gives_as_many_pairs_as_the_settings_say_and_counts_once(most, kept):
    several = SETTINGS.model_copy(update={"pairs_per_context": most})
    outcome, alone = mined(settings=several), mined()
    assert len(alone.preferences) == 6
    assert outcome.preferences[::kept] == alone.preferences
    ends = [(pair.chosen, pair.rejected) for pair in outcome.preferences]
    assert ends == [(3, 0), (3, 1), (3, 2)][:kept] * 6
    assert (outcome.contexts, outcome.share) == (alone.contexts, alone.share) == (6, 1.0)
    assert outcome.comparisons == alone.comparisons


def test_every_pair_of_a_context_names_its_sources():
    several = SETTINGS.model_copy(update={"pairs_per_context": None})
    sources = {f"q{i}": (f"{i:064x}",) for i in range(8)}
    by_context = {}
    for pair in mined(settings=several, sources=sources).preferences:
        by_context.setdefault(pair.context, set()).add(pair.sources)
    assert {len(found) for found in by_context.values()} == {1}
    assert all(len(named) == 5 for found in by_context.values() for named in found)


def test_no_contexts_have_no_yield():
    assert mined(count=0).share == 0.0


def test_a_pair_names_the_source_of_each_of_its_questions():
    sources = {f"q{i}": (f"{i:064x}", "f" * 64) for i in range(8)}
    for pair in mined(sources=sources).preferences:
        assert len(pair.questions) == 5
        assert pair.sources == tuple(sorted(source for q in pair.questions for source in sources[q]))
        assert pair.sources.count("f" * 64) == 5
    assert mined().preferences[0].sources == ()


def broken_inputs():
    context = make_context()
    rollouts = make_rollouts(context, MEMORIES)
    judgements, questions = make_judgements(rollouts), make_questions()
    yield "no recent questions", ([context], [rollouts], judgements, [], None)
    yield "question q0: given 2 times", ([context], [rollouts], judgements, [*questions, questions[0]], None)
    yield "question q0: its source is unknown", ([context], [rollouts], judgements, questions, {})
    yield "no such context", ([make_context(1)], [rollouts], judgements, questions, None)
    yield "given twice", ([context], [rollouts, rollouts], judgements, questions, None)
    later = make_rollouts(make_context(1), MEMORIES)
    missing = [*judgements, *make_judgements(later)[:3]]
    yield "candidate 3: no judgement", ([context, make_context(1)], [rollouts, later], missing, questions, None)
    yield "candidate 0: judged twice", ([context], [rollouts], [*judgements, judgements[0]], questions, None)


@pytest.mark.parametrize(("message", "inputs"), [pytest.param(m, i, id=m) for m, i in broken_inputs()])
def test_wrong_inputs_are_named_before_the_judge_is_asked(message, inputs):
    judge = WordJudge()
    contexts, rollouts, judgements, questions, sources = inputs
    with pytest.raises(UserError, match=message):
        mine(contexts, rollouts, judgements, questions, judge, SETTINGS, 0, sources=sources)
    assert judge.asked == []


def test_rollouts_of_another_context_are_refused():
    rollouts = make_rollouts(make_context(0), MEMORIES)
    with pytest.raises(UserError, match="build the cache again"):
        compare_candidates(make_context(1), rollouts, [], make_questions(), WordJudge(), SETTINGS, 0)


def test_comparing_without_questions_is_refused():
    with pytest.raises(UserError, match="no recent questions"):
        compared(questions=[])
