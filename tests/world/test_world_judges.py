"""Judges, strong model and fact checker that know the truth."""

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskmem.errors import UserError
from taskmem.judge.protocols import Fidelity, JudgeError
from taskmem.records import Context, Question, Segment, write_records
from taskmem.world.facts import TYPES, VALUES, describe, read_facts, sample_stream, well_formed
from taskmem.world.judges import StrongModel, Truth, WorldFactChecker, WorldHelpfulness, WorldTruth, world_judges
from taskmem.world.questions import question_text

FACTS = st.fixed_dictionaries({kind: st.sampled_from(values) for kind, values in VALUES.items()})
KINDS = st.sets(st.sampled_from(TYPES))
ASKED = st.lists(st.sampled_from(TYPES), min_size=1, max_size=10)
SWAPPED = {"first": "second", "second": "first", "tie": "tie"}


def asking(kinds: Sequence[str]) -> list[Question]:
    return [
        Question(id=f"q{i}", environment="e", stream="t", asked_at_s=20.0, type=kind, text=question_text(kind, 5.0))
        for i, kind in enumerate(kinds)
    ]


def a_context() -> Context:
    segment = Segment(
        stream="s", index=0, start_s=0, end_s=10, source="s", clip="s", fps=0.2, width=64, height=64, sha256="0" * 64
    )
    return Context(segments=(segment,))


@pytest.mark.parametrize(
    ("memory", "verdict"),
    [
        ("a red person, in the kitchen", Fidelity(faithful=True, coherent=True)),
        ("a red person, in the garden", Fidelity(faithful=False, coherent=True)),
        ("nothing of note", Fidelity(faithful=True, coherent=False)),
        ("a blue person, a red person", Fidelity(faithful=False, coherent=False)),
    ],
)
def test_fidelity_is_truth_and_form(
    truth: WorldTruth, context_of: Callable[..., Context], memory: str, verdict: Fidelity
) -> None:
    assert world_judges(truth).fidelity.fidelity(context_of(), memory) == verdict


@pytest.mark.parametrize(
    ("preceding", "memory", "non_redundant"),
    [
        ([], "in the kitchen", True),
        (["in the kitchen"], "in the kitchen, a red person", False),
        (["in the garden"], "in the kitchen", True),
        (["a red person"], "a red person", True),
        (["in the garden"], "in the garden", True),
    ],
)
def test_redundancy_is_a_room_told_again(
    truth: WorldTruth, context_of: Callable[..., Context], preceding: list[str], memory: str, non_redundant: bool
) -> None:
    context = context_of(preceding)
    assert world_judges(truth).redundancy.non_redundant(context, memory) is non_redundant


@pytest.mark.parametrize(
    ("preceding", "memories", "ranks"),
    [
        ([], [], []),
        ([], ["a red person"], [1]),
        ([], ["a red person", "a red person, carries a cup"], [2, 1]),
        ([], ["a red person", "carries a cup", "the door opens"], [2, 2, 2]),
        ([], ["a red person, carries a cup", "a red person", "the door opens", ""], [1, 2.5, 2.5, 4]),
        ([], ["a red person", "in the kitchen"], [2, 1]),
        (["in the kitchen"], ["a red person", "in the kitchen"], [1, 2]),
        ([], ["a red person, in the garden", "a red person"], [1.5, 1.5]),
        ([], ["a blue person", "a red person and so on", "a red person"], [2, 3, 1]),
    ],
)
def test_richness_ranks_by_facts_that_are_true_and_new(
    truth: WorldTruth, context_of: Callable[..., Context], preceding: list[str], memories: list[str], ranks: list[float]
) -> None:
    context = context_of(preceding)
    assert world_judges(truth).richness.rank(context, memories) == ranks


@given(st.lists(st.tuples(FACTS, KINDS), max_size=8))
def test_ranks_of_a_group_always_share_the_same_sum(told: list[tuple[Mapping[str, str], set[str]]]) -> None:
    truth = WorldTruth([Truth(stream="s", index=0, facts={kind: VALUES[kind][0] for kind in TYPES})])
    memories = [describe(facts, kinds) for facts, kinds in told]
    ranks = world_judges(truth).richness.rank(a_context(), memories)
    assert sum(ranks) == len(memories) * (len(memories) + 1) / 2
    assert all((a == b) <= (ranks[i] == ranks[j]) for i, a in enumerate(memories) for j, b in enumerate(memories))


@given(ASKED, FACTS, KINDS, FACTS, KINDS, FACTS, FACTS)
def test_helpfulness_knows_no_right_or_wrong(
    asked: list[str],
    first: Mapping[str, str],
    told_first: set[str],
    second: Mapping[str, str],
    told_second: set[str],
    other_first: Mapping[str, str],
    other_second: Mapping[str, str],
) -> None:
    judge, context, questions = WorldHelpfulness(), a_context(), asking(asked)
    verdict = judge.compare(context, questions, describe(first, told_first), describe(second, told_second))
    other = judge.compare(context, questions, describe(other_first, told_first), describe(other_second, told_second))
    assert verdict == other


@given(ASKED, FACTS, KINDS, KINDS)
def test_swapping_the_order_swaps_the_verdict(
    asked: list[str], facts: Mapping[str, str], one: set[str], two: set[str]
) -> None:
    judge, context, questions = WorldHelpfulness(), a_context(), asking(asked)
    verdict = judge.compare(context, questions, describe(facts, one), describe(facts, two))
    assert judge.compare(context, questions, describe(facts, two), describe(facts, one)) == SWAPPED[verdict]


@pytest.mark.parametrize(
    ("asked", "first", "second", "verdict"),
    [
        (["door"], "the door opens", "a red person, in the kitchen, carries a cup, shows one lamps", "first"),
        (["door"], "a red person", "the door shut", "second"),
        (["door"], "the door opens", "the door shut", "tie"),
        (["door"], "a red person", "in the kitchen", "tie"),
        (["door", "door", "lamps"], "the door opens", "shows one lamps", "first"),
        (["door"] * 5, "the door opens", "", "first"),
        (["door", *["lamps"] * 4], "the door opens, shows one lamps", "shows one lamps", "tie"),
        (["door", *["lamps"] * 3], "the door opens, shows one lamps", "shows one lamps", "first"),
    ],
)
def test_the_memory_that_states_what_is_asked_for_is_more_useful(
    asked: list[str], first: str, second: str, verdict: str
) -> None:
    assert WorldHelpfulness().compare(a_context(), asking(asked), first, second) == verdict


@pytest.mark.parametrize("questions", [[], [asking(["door"])[0].model_copy(update={"text": "what is love?"})]])
def test_helpfulness_gives_no_verdict_where_it_understands_no_question(questions: list[Question]) -> None:
    with pytest.raises(JudgeError, match="none of the questions is one of this world's"):
        WorldHelpfulness().compare(a_context(), questions, "a red person", "in the kitchen")


def test_a_segment_the_world_has_not_rendered_is_a_judges_failure(context_of: Callable[..., Context]) -> None:
    judges, context = world_judges(WorldTruth([])), context_of()
    for ask in (
        lambda: judges.fidelity.fidelity(context, "a red person"),
        lambda: judges.redundancy.non_redundant(context, "a red person"),
        lambda: judges.richness.rank(context, ["a red person"]),
    ):
        with pytest.raises(JudgeError, match="the world has not rendered segment 0 of stream s"):
            ask()


def test_every_judge_says_its_role_and_its_rule(truth: WorldTruth) -> None:
    judges = world_judges(truth)
    identities = [j.identity for j in (judges.fidelity, judges.redundancy, judges.richness, judges.helpfulness)]
    assert [i.role for i in identities] == ["fidelity", "redundancy", "richness", "helpfulness"]
    assert len({i.prompt_sha256 for i in identities}) == 4
    assert {i.model for i in identities} == {"rendered-world-v1"}


def test_the_strong_model_tells_some_of_the_truth_and_nothing_else() -> None:
    stream = sample_stream(random.Random(0), 200)
    truth = WorldTruth([Truth(stream="s", index=i, facts=facts) for i, facts in enumerate(stream)])
    memories = [StrongModel(truth, seed=1).memory("s", i) for i in range(len(stream))]
    for memory, facts in zip(memories, stream, strict=True):
        assert well_formed(memory)
        assert read_facts(memory).items() <= facts.items()
    assert {len(read_facts(memory)) for memory in memories} == {1, 2, 3, 4}
    assert {kind for memory in memories for kind in read_facts(memory)} == set(TYPES)


def test_the_strong_model_is_fixed_by_its_seed(truth: WorldTruth) -> None:
    told = {seed: [StrongModel(truth, seed).memory("s", i) for i in (2, 0, 1, 3)] for seed in range(4)}
    strong = StrongModel(truth, 2)
    assert [strong.memory("s", i) for i in (2, 0, 1, 3)] == told[2]
    assert len({tuple(memories) for memories in told.values()}) > 1


@pytest.mark.parametrize(
    ("memory", "counts"),
    [
        ("", (0, 0)),
        ("a red person, in the kitchen", (2, 0)),
        ("a blue person, in the kitchen, shows one lamps", (3, 2)),
    ],
)
def test_the_fact_checker_counts_what_is_stated_and_what_is_wrong(
    truth: WorldTruth, memory: str, counts: tuple[int, int]
) -> None:
    assert WorldFactChecker(truth).check("s", 0, memory) == counts


def test_truth_is_read_from_all_splits_and_names_what_it_lacks(tmp_path: Path, facts: dict[str, str]) -> None:
    for stream in ("a", "b"):
        write_records(tmp_path / f"{stream}.jsonl", [Truth(stream=stream, index=0, facts=facts)])
    truth = WorldTruth.read(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert truth.at("a", 0) == truth.at("b", 0) == facts
    with pytest.raises(UserError, match=r"segment 1 of stream a: not rendered here; give the truth.jsonl of its split"):
        truth.at("a", 1)


def test_truth_that_is_missing_or_broken_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"truth\.jsonl: cannot be read"):
        WorldTruth.read(tmp_path / "truth.jsonl")
    (tmp_path / "truth.jsonl").write_text('{"stream": "a", "index": 0, "facts": {}}\n')
    with pytest.raises(UserError, match=r"truth.jsonl:1: Truth .*facts need one of the world"):
        WorldTruth.read(tmp_path / "truth.jsonl")


@pytest.mark.parametrize("wrong", [{"colour": "red"}, {"figure": "pink"}])
def test_truth_of_another_world_is_refused(facts: dict[str, str], wrong: dict[str, str]) -> None:
    known = {kind: value for kind, value in facts.items() if kind != "figure"}
    with pytest.raises(ValueError, match="facts"):
        Truth(stream="s", index=0, facts={**known, **wrong})
