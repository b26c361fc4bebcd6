"""Which segments are shown, and what is marked in the memories of them."""

from dataclasses import replace

import pytest
from report_parts import BROKEN, LYING, TASK, Finished, Page

from taskmem.evaluation.report.inputs import Watched, read_watched
from taskmem.evaluation.report.marking import AnswerText, Missing, Piece, mark
from taskmem.evaluation.report.moments import RULES, Chosen, Moment, all_moments, choose
from taskmem.evaluation.streaming import GradedAnswer
from taskmem.loop.results import ARMS
from taskmem.records import Question
from taskmem.world.evidence import WorldEvidence
from taskmem.world.facts import describe
from taskmem.world.judges import WorldTruth


@pytest.fixture(scope="module")
def watched(finished: Finished) -> Watched:
    return read_watched(finished.run, ARMS)


@pytest.fixture(scope="module")
def moments(watched: Watched) -> list[Moment]:
    return all_moments(watched, WorldEvidence(), TASK)


@pytest.fixture(scope="module")
def chosen(moments: list[Moment]) -> list[Chosen]:
    return choose(moments)


def test_every_segment_has_the_questions_that_name_a_moment_in_it_the_task_s_first(moments: list[Moment]) -> None:
    assert len(moments) == 3 * 5
    for moment in moments:
        assert {q.id.rsplit(".", 1)[0] for q in moment.questions} == {
            f"{moment.segment.stream}.{moment.segment.index:03d}"
        }
        assert [q.type for q in moment.questions] == [TASK, "door", "figure", "lamps", "room"]


def test_a_segment_is_shown_where_the_focus_paid_off_and_where_it_cost(chosen: list[Chosen]) -> None:
    assert any(c.moment.gained for c in chosen)
    assert any(c.moment.lost for c in chosen)
    assert any(c.moment.lost and not c.moment.gained for c in chosen)
    assert 4 <= len(chosen) <= 6


def test_a_segment_is_shown_where_phase_two_misleads(chosen: list[Chosen]) -> None:
    misled = [c for c in chosen if c.rule.startswith("Misled")]
    assert [c.moment.segment.index for c in misled] == [LYING]
    assert misled[0].like_it >= 1


def test_each_rule_shows_only_segments_it_holds_for_and_says_how_many_there_are(
    moments: list[Moment], chosen: list[Chosen]
) -> None:
    rules = {rule.name: rule for rule in RULES}
    for c in chosen:
        if c.rule in rules:
            assert rules[c.rule].holds(c.moment)
            assert c.like_it == sum(rules[c.rule].holds(m) for m in moments)
            assert sum(other.rule == c.rule for other in chosen) <= rules[c.rule].shown


def test_no_segment_is_shown_twice_and_the_choice_does_not_depend_on_the_order_of_the_questions(
    watched: Watched, chosen: list[Chosen]
) -> None:
    shown = [(c.moment.segment.stream, c.moment.segment.index) for c in chosen]
    assert len(set(shown)) == len(shown)
    turned = replace(watched, questions=tuple(reversed(watched.questions)))
    again = choose(all_moments(turned, WorldEvidence(), TASK))
    assert [(c.moment.segment.stream, c.moment.segment.index) for c in again] == shown


def test_where_no_arm_differs_some_segments_are_shown_all_the_same(watched: Watched) -> None:
    same = dict.fromkeys(ARMS, watched.memories["base"])
    graded = dict.fromkeys(ARMS, watched.graded["base"])
    alike = replace(watched, memories=same, graded=graded)
    assert len(choose(all_moments(alike, WorldEvidence(), TASK))) == 4


def test_questions_that_name_no_moment_belong_to_the_last_segment_that_had_ended(watched: Watched) -> None:
    for moment in all_moments(watched, AnswerText(), TASK):
        later = [s.end_s for s in watched.segments if s.start_s == moment.segment.end_s]
        for question in moment.questions:
            assert moment.segment.end_s <= question.asked_at_s
            assert all(question.asked_at_s < end for end in later)


def test_a_memory_that_broke_the_format_says_nothing(moments: list[Moment]) -> None:
    broken = next(m for m in moments if m.segment.index == BROKEN).arms["phase_two"]
    assert not broken.written
    assert broken.marked.pieces == ()
    assert len(broken.marked.missing) == 5


def test_the_marks_stand_where_the_needed_phrases_are(finished: Finished, watched: Watched, page: str) -> None:
    truth = WorldTruth.read(finished.root / "world" / "truth.jsonl")
    for moment in all_moments(watched, WorldEvidence(), TASK):
        facts = truth.at(moment.segment.stream, moment.segment.index)
        needed = {describe(facts, (kind,)): "task" if kind == TASK else "needed" for kind in facts}
        for arm, kept in moment.arms.items():
            text = watched.memories[arm][moment.segment.stream, moment.segment.index].text or ""
            assert "".join(p.text for p in kept.marked.pieces) == text
            for piece in kept.marked.pieces:
                assert piece.mark in ("", "wrong") or needed[piece.text] == piece.mark
            said = {p.text for p in kept.marked.pieces if p.mark in ("task", "needed")}
            assert said == {phrase for phrase in needed if phrase in text}
            assert {m.phrase for m in kept.marked.missing} == set(needed) - said
            assert kept.marked.wrong == (arm == "phase_two" and moment.segment.index == LYING)
    kinds = {kind for kind, _ in Page(page).marks[3:]}
    assert kinds == {"task", "needed", "wrong"}


def question(kind: str, answer: str | None, number: int = 0) -> Question:
    return Question(
        id=f"q{number}",
        environment="e",
        stream="s",
        asked_at_s=10.0,
        type=kind,
        text="what was it?",
        answer=answer,
        origin="none" if answer is None else "environment",
    )


def answers(*correct: bool) -> dict[str, GradedAnswer]:
    return {
        f"q{n}": GradedAnswer(question=f"q{n}", stream="s", environment="e", type="t", answer="a", correct=right)
        for n, right in enumerate(correct)
    }


def test_the_answer_s_own_words_are_found_whole_and_in_any_case() -> None:
    asked = question("t", "cup")
    assert AnswerText().said(asked, "a teacup, a Cup, a cup") == (12, 15)
    assert AnswerText().said(asked, "cups") is None
    assert AnswerText().said(question("t", None), "cup") is None
    assert AnswerText().said(question("t", "ß"), "İß") is None


def test_marks_do_not_overlap_and_the_task_s_stands_above_another_s() -> None:
    asked = [question("t", "red cup", 0), question("other", "cup", 1), question("other", "red cup", 2)]
    marked = mark("a red cup here", asked, answers(True, True, True), AnswerText(), "t")
    assert marked.pieces == (Piece("a ", ""), Piece("red cup", "task"), Piece(" here", ""))
    assert marked.missing == ()


def test_what_is_missing_is_told_with_whether_another_memory_says_it() -> None:
    asked = [question("t", "cup", 0), question("other", "hat", 1), question("other", None, 2)]
    marked = mark(None, asked, answers(False, True, False), AnswerText(), "t")
    assert marked.missing == (Missing("cup", True, False), Missing("hat", False, True))
