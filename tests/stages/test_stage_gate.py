"""The gate on files: two evaluated arms of the rendered world in, a verdict and its contexts out."""

import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from taskmem.backends import Backends, backends_for
from taskmem.config import Profile, load_profile
from taskmem.errors import UserError
from taskmem.evaluation.gate import GatedContext, Trial, Verdict, decide
from taskmem.evaluation.streaming import ask, graded_answers
from taskmem.feedback import Collection as Collected
from taskmem.feedback import Watermark, write_collection
from taskmem.judge.protocols import FidelityJudge, HelpfulnessJudge, JudgeError, Position
from taskmem.records import Context, Memory, Question, Segment, read_records, write_records
from taskmem.stages.common import GRADED, MEMORIES, QUESTIONS, SEGMENTS
from taskmem.stages.gate import CONTEXTS, VERDICT, gate, weigh
from taskmem.world.facts import Facts, describe, sample_stream
from taskmem.world.judges import Truth
from taskmem.world.questions import ask_about

DIGEST, SOURCE = "a" * 64, "b" * 64
STREAMS, SEGMENTS_EACH = 8, 6
TASK = "object"
Told = Callable[[str, int, Facts], str | None]


def tells(*kinds: str) -> Told:
    """A policy that says what is true of these types."""
    return lambda stream, index, facts: describe(facts, kinds)


CHAMPION, CHALLENGER = tells("figure", "door"), tells("figure", "object", "door")


@dataclass(frozen=True)
class World:
    """Rendered facts as the stages' files, without pixels."""

    root: Path
    facts: dict[str, list[dict[str, str]]]
    profile: Profile
    backends: Backends

    @property
    def questions(self) -> Path:
        return self.root / "world" / "held_out" / QUESTIONS

    def arm(self, name: str, told: Told) -> Path:
        """An evaluated arm that writes what it is told."""
        memories = [
            Memory(
                stream=stream,
                index=index,
                start_s=index * 10.0,
                end_s=index * 10.0 + 10,
                text=told(stream, index, facts),
                think_tokens=0,
                memory_tokens=10,
                policy=DIGEST,
                adapter=name,
            )
            for stream, facts_of in self.facts.items()
            for index, facts in enumerate(facts_of)
        ]
        answers = ask(read_records(self.questions, Question), memories, self.backends.answerer)
        write_records(self.root / name / MEMORIES, memories)
        write_records(self.root / name / GRADED, graded_answers(answers, self.backends.grader))
        return self.root / name

    def gate(self, champion: Told, challenger: Told, environment: str = TASK, out: str = "out") -> Verdict:
        return gate(
            self.arm("champion", champion),
            self.arm("challenger", challenger),
            self.root / "segments",
            self.questions,
            self.root / "feedback",
            environment,
            self.backends,
            self.profile,
            0,
            self.root / out,
        )

    def weigh(self, champion: str = "champion", challenger: str = "challenger") -> Trial:
        """The trial on two arms that are there."""
        return weigh(
            self.root / champion,
            self.root / challenger,
            self.root / "segments",
            self.questions,
            self.root / "feedback",
            TASK,
            self.backends.judges,
            self.profile,
            seed=0,
        )

    def contexts(self) -> list[GatedContext]:
        return read_records(self.root / "out" / CONTEXTS, GatedContext)

    def judged_by(self, helpfulness: HelpfulnessJudge | None = None, fidelity: FidelityJudge | None = None) -> "World":
        judges = self.backends.judges
        other = replace(judges, helpfulness=helpfulness or judges.helpfulness, fidelity=fidelity or judges.fidelity)
        return replace(self, backends=replace(self.backends, judges=other))


def segment(stream: str, index: int) -> Segment:
    return Segment(
        stream=stream,
        index=index,
        start_s=index * 10.0,
        end_s=index * 10.0 + 10,
        source=f"{stream}.mp4",
        clip=f"clips/{stream}/{index:06d}.mp4",
        fps=0.2,
        width=64,
        height=64,
        sha256=f"{index:064x}",
    )


def collect(folder: Path, questions: Collection[Question], by: str = SOURCE, also: Collection[Question] = ()) -> None:
    """What was collected of the source `by`, and after that of each question of `also` from a source of its own."""
    asked = {TASK: tuple(q.without_answer() for q in (*questions, *also)), "silent": ()}
    several = {q.id: (f"{n:064x}",) for n, q in enumerate(also)}
    sources: dict[str, dict[str, tuple[str, ...]]] = {TASK: {q.id: (by,) for q in questions} | several, "silent": {}}
    write_collection(folder, Collected(asked, sources, (), Watermark(offset=0, lines=0, sha256=DIGEST), len(questions)))


@pytest.fixture
def world(tmp_path: Path) -> World:
    facts = {f"s{n}": sample_stream(random.Random(n), SEGMENTS_EACH) for n in range(STREAMS)}
    asked = [q for s, f in facts.items() for q in ask_about(s, f, random.Random(s), 10.0)]
    truths = [Truth(stream=s, index=i, facts=f) for s, known in facts.items() for i, f in enumerate(known)]
    write_records(tmp_path / "world" / "held_out" / "truth.jsonl", truths)
    write_records(tmp_path / "world" / "held_out" / QUESTIONS, asked)
    write_records(tmp_path / "segments" / SEGMENTS, [segment(s, i) for s in facts for i in range(SEGMENTS_EACH)])
    collect(tmp_path / "feedback", earlier(TASK))
    profile = load_profile("miniature")
    return World(tmp_path, facts, profile, backends_for(profile, tmp_path / "world"))


def test_a_challenger_that_remembers_what_is_asked_is_promoted_and_the_verdict_written(world: World) -> None:
    verdict = world.gate(CHAMPION, CHALLENGER)
    assert (verdict.environment, verdict.promote, verdict.reasons) == (TASK, True, ())
    count = STREAMS * SEGMENTS_EACH
    assert (verdict.win_test.wins, verdict.win_test.losses, verdict.win_test.streams) == (count, 0, STREAMS)
    assert (verdict.gold.asked, verdict.gold.champion, verdict.gold.challenger) == (count, 0.0, 1.0)
    assert sorted(verdict.coverage) == ["door", "figure", "lamps", "room"]
    assert Verdict.model_validate_json((world.root / "out" / VERDICT).read_text()) == verdict


def test_the_champion_is_not_replaced_by_its_equal_nor_by_a_worse_one(world: World) -> None:
    same = world.gate(CHAMPION, CHAMPION)
    assert (same.promote, same.win_test.ties, same.win_test.p_value) == (False, STREAMS * SEGMENTS_EACH, 1.0)
    worse = world.gate(CHALLENGER, CHAMPION)
    assert (worse.win_test.wins, worse.win_test.losses, worse.gold.passed) == (0, STREAMS * SEGMENTS_EACH, False)


def test_the_same_inputs_give_the_same_bytes(world: World) -> None:
    world.gate(CHAMPION, CHALLENGER)
    world.gate(CHAMPION, CHALLENGER, out="again")
    for name in (VERDICT, CONTEXTS):
        assert (world.root / "out" / name).read_bytes() == (world.root / "again" / name).read_bytes()


def test_the_written_contexts_give_the_verdict_again(world: World) -> None:
    verdict = world.gate(CHAMPION, lambda s, i, f: None if i == 0 else CHALLENGER(s, i, f))
    audited = replace(world.weigh(), contexts=world.contexts())
    assert decide(audited, world.profile.gate, world.profile.evaluation, seed=0) == verdict


def test_a_challenger_that_is_wrong_about_the_task_wins_the_judge_and_is_refused(world: World) -> None:
    def hat_or_cup(stream: str, index: int, facts: Facts) -> str:
        return describe({**facts, "object": "cup" if facts["object"] == "hat" else "hat"}, ("figure", "object", "door"))

    verdict = world.gate(tells("figure", "door", "object"), hat_or_cup)
    assert not verdict.quality["faithful"].passed
    assert not verdict.gold.passed
    unanswered = world.gate(CHAMPION, hat_or_cup)
    assert unanswered.win_test.passed
    assert [reason.split()[0] for reason in unanswered.reasons] == ["faithful"]


def test_a_broken_output_loses_to_any_memory_and_ties_with_another(world: World) -> None:
    world.gate(
        lambda s, i, f: None if i in (0, 2) else CHAMPION(s, i, f),
        lambda s, i, f: None if i in (1, 2) else CHAMPION(s, i, f),
    )
    decided = {c.index: (c.decided_by, c.outcome) for c in world.contexts()}
    assert [decided[i] for i in range(3)] == [("grammar", w) for w in ("challenger", "champion", "tie")]
    assert decided[3] == ("text", "tie")


class First:
    """Prefers whatever stands first."""

    def __init__(self, judge: HelpfulnessJudge) -> None:
        self.identity = judge.identity
        self.shown: list[tuple[Context, list[str], str, str]] = []

    def compare(self, context: Context, questions: Sequence[Question], first: str, second: str) -> Position:
        assert all(question.answer is None for question in questions)
        self.shown.append((context, [question.id for question in questions], first, second))
        return "first"


def test_a_judge_that_prefers_a_position_decides_nothing(world: World) -> None:
    verdict = world.judged_by(First(world.backends.judges.helpfulness)).gate(CHAMPION, CHALLENGER)
    assert (verdict.win_test.wins, verdict.win_test.losses) == (0, 0)
    assert {(c.first_order, c.second_order, c.outcome) for c in world.contexts()} == {("champion", "challenger", "tie")}


def test_the_judge_sees_the_champion_s_context_and_drawn_recent_questions_in_both_orders(world: World) -> None:
    judge = First(world.backends.judges.helpfulness)
    world.judged_by(judge).gate(CHAMPION, CHALLENGER)
    recorded = {c.context: c for c in world.contexts()}
    for (context, ids, first, second), (again, same_ids, *swapped) in zip(*[iter(judge.shown)] * 2, strict=True):
        assert (again, same_ids, swapped) == (context, ids, [second, first])
        assert recorded[context.id].questions == tuple(ids)
        assert len(ids) == world.profile.mining.questions_shown
        assert all(question.startswith("earlier") for question in ids)
        facts = world.facts[context.current.stream]
        assert first == CHAMPION("", 0, facts[context.current.index])
        assert all(m.text == CHAMPION("", 0, facts[m.index]) for m in context.memories)
        assert len(context.memories) == min(context.current.index, world.profile.policy.window - 1)


def earlier(*kinds: str) -> list[Question]:
    """Questions of these types about a stream that is not held out."""
    asked = ask_about("earlier", sample_stream(random.Random(99), SEGMENTS_EACH), random.Random(0), 10.0)
    return [question for question in asked if question.type in kinds]


def test_a_source_that_asks_more_often_is_not_heard_more_often_than_when_mining(world: World) -> None:
    honest, loud = earlier(TASK)[:2], earlier("lamps", "room")
    collect(world.root / "feedback", loud, also=honest)
    judge = First(world.backends.judges.helpfulness)
    world.judged_by(judge).gate(CHAMPION, CHALLENGER)
    for _, ids, _, _ in judge.shown:
        assert {question.id for question in honest} <= set(ids)


def test_a_source_that_asks_often_lifts_no_bound_on_other_types(world: World) -> None:
    honest, loud = earlier(TASK)[:5], earlier("lamps")[:5]
    collect(world.root / "feedback", loud, also=honest)
    assert world.gate(CHAMPION, CHALLENGER).coverage.keys() == {"door", "figure", "lamps", "room"}


def test_a_question_of_an_unknown_source_is_a_mistake(world: World) -> None:
    asked = tuple(question.without_answer() for question in earlier(TASK))
    nobody: dict[str, dict[str, tuple[str, ...]]] = {TASK: {}}
    watermark = Watermark(offset=0, lines=0, sha256=DIGEST)
    write_collection(world.root / "feedback", Collected({TASK: asked}, nobody, (), watermark, len(asked)))
    with pytest.raises(UserError, match=r"question earlier.*: its source is unknown; collect the feedback again"):
        world.gate(CHAMPION, CHALLENGER)


def test_each_memory_s_redundancy_is_judged_in_its_own_arm_s_context(world: World) -> None:
    # the champion names the room at the start only, the challenger in every segment
    world.gate(lambda s, i, f: describe(f, ("room",) if i == 0 else ("figure",)), tells("room", "object"))
    for c in world.contexts():
        facts = world.facts[c.stream]
        stays = c.index > 0 and facts[c.index]["room"] == facts[c.index - 1]["room"]
        assert c.champion is not None
        assert c.challenger is not None
        assert c.champion.non_redundant
        assert c.challenger.non_redundant is not stays


class Failing:
    """Fails for good on the streams named."""

    def __init__(self, judge: HelpfulnessJudge, streams: Collection[str]) -> None:
        self.identity = judge.identity
        self._judge, self._streams = judge, streams

    def compare(self, context: Context, questions: Sequence[Question], first: str, second: str) -> Position:
        if context.current.stream in self._streams:
            raise JudgeError(f"the endpoint timed out on {context.current.stream}")
        return self._judge.compare(context, questions, first, second)


def test_a_night_on_which_a_judge_fails_often_promotes_nobody(world: World) -> None:
    failing = Failing(world.backends.judges.helpfulness, ["s0", "s1"])
    verdict = world.judged_by(failing).gate(CHAMPION, CHALLENGER)
    share = f"{2 * SEGMENTS_EACH} of {STREAMS * SEGMENTS_EACH}"
    assert any(share in r and "timed out on s0" in r for r in verdict.reasons)
    assert [c.outcome for c in world.contexts() if c.stream in ("s0", "s1")] == [None] * 2 * SEGMENTS_EACH


def test_a_memory_without_a_quality_verdict_leaves_its_context_unscored(world: World) -> None:
    truth = world.root / "world" / "held_out" / "truth.jsonl"
    write_records(truth, [t for t in read_records(truth, Truth) if t.stream != "s7"])
    partial = replace(world, backends=backends_for(world.profile, world.root / "world"))
    verdict = partial.gate(CHAMPION, CHALLENGER)
    assert verdict.unscored.contexts.count == SEGMENTS_EACH
    assert verdict.quality["format"].champion.of == (STREAMS - 1) * SEGMENTS_EACH
    assert verdict.unscored.reason == "the world has not rendered segment 0 of stream s7"


def test_only_the_environment_s_own_known_answers_are_gold(world: World) -> None:
    questions = read_records(world.questions, Question)
    origins = ("environment", "user_correction", "none")
    told = [q.model_copy(update={"origin": origins[n % 3]}) for n, q in enumerate(questions)]
    write_records(world.questions, told)
    gold = world.gate(CHAMPION, CHALLENGER).gold
    assert gold.asked == sum(q.type == TASK and q.origin != "none" for q in told) < STREAMS * SEGMENTS_EACH


def test_an_environment_that_asked_nothing_has_no_gate(world: World) -> None:
    for environment in ("garden", "silent"):
        with pytest.raises(UserError, match=f"no questions of environment {environment}; it has those of: {TASK}$"):
            world.gate(CHAMPION, CHALLENGER, environment)


def cut(path: Path, lines: slice) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[lines]))


@pytest.mark.parametrize(
    ("name", "where"),
    [(MEMORIES, "not one memory for each of these segments, see segment 0 of stream s0"), (GRADED, "not one answer")],
)
@pytest.mark.parametrize("arm", ["champion", "challenger"])
def test_arms_over_other_segments_or_questions_are_refused(world: World, arm: str, name: str, where: str) -> None:
    world.gate(CHAMPION, CHALLENGER)
    shutil.copytree(world.root / arm, world.root / "cut")
    cut(world.root / "cut" / name, slice(1, None))
    with pytest.raises(UserError, match=f"{world.root / 'cut' / name}: {where}.*; evaluate champion and challenger"):
        world.weigh(**{arm: "cut"})


def test_the_stage_needs_no_torch() -> None:
    code = "import sys, taskmem.stages.gate; sys.exit(bool({'torch', 'peft', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
