"""deployment: the agent works, people ask and say whether the answer was right."""

import shutil
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from taskmem.agent import Agent, Answer
from taskmem.backends import Backends
from taskmem.config import Profile
from taskmem.errors import UserError
from taskmem.evaluation.streaming import feedback_and_rest
from taskmem.files import canonical_json, sha256_bytes, sha256_file
from taskmem.policy.stream import by_stream, positions
from taskmem.progress import Progress, silent
from taskmem.records import FeedbackEvent, Memory, Question, Response, Segment, write_json, write_records
from taskmem.registry.manifest import WEIGHTS
from taskmem.stages.common import EVENTS, MEMORIES, RESPONSES, SUMMARY, footage, questions_about
from taskmem.stages.deployed import deployed_agent

REQUEST_DIGITS = 32
# stream time is all a rendered stream has; a log needs dates
FIRST_DAY = datetime(2026, 1, 1, tzinfo=UTC)


def deployment(
    segments: Path,
    policy: Path,
    questions: Path,
    backends: Backends,
    profile: Profile,
    seed: int,
    out: Path,
    progress: Progress = silent,
    adapter: Path | None = None,
    image: str = "local",
) -> None:
    """Start an agent with the policy (steered by the adapter in `adapter`), stream the split, ask its questions, stop it.

    Each environment's first questions are asked. Writes `out`/memories.jsonl, `out`/events/<environment>.jsonl with one
    feedback event per question, `out`/responses.jsonl with one `Response` per question, which says that `image` ran, and
    `out`/summary.json {segments, format_rate, asked, answered, correct}. UserError if the policy wrote not one well-formed
    memory.
    """
    # it is the sign of a policy that was deployed and checked
    (out / SUMMARY).unlink(missing_ok=True)
    film = footage(segments, profile)
    first, _ = feedback_and_rest(questions_about(questions, film.segments), profile.evaluation)
    # what a killed attempt left would be taken for feedback of this one
    shutil.rmtree(out / EVENTS, ignore_errors=True)
    names = sorted({question.environment for question in first})
    place = (names, backends.answerer, profile, seed, out / EVENTS, adapter)
    with deployed_agent(policy, film, segments, *place) as agent:
        agent.ready()
        memories = _stream(agent, film.segments, progress)
        write_records(out / MEMORIES, memories)
        well_formed = sum(memory.text is not None for memory in memories)
        if not well_formed:
            raise UserError(f"{policy}: not one of {len(memories)} memories is well formed; deploy another policy")
        events = _ask(agent, first, backends)
        weights = sha256_file(adapter / WEIGHTS) if adapter else None
        write_records(out / RESPONSES, [_response(event, agent.ready().policy, weights, image) for event in events])
    for lock in (out / EVENTS).glob("*.lock"):
        lock.unlink()
    summary = {
        "segments": len(memories),
        "format_rate": well_formed / len(memories),
        "asked": len(events),
        "answered": sum(event.answer is not None for event in events),
        "correct": sum(event.outcome == "correct" for event in events),
    }
    write_json(out / SUMMARY, summary)


def _stream(agent: Agent, segments: Sequence[Segment], progress: Progress) -> list[Memory]:
    """Every segment's memory, ordered by stream and index; all streams run side by side."""
    steps = positions(by_stream(segments))
    memories: list[Memory] = []
    for number, newest in enumerate(steps):
        memories += agent.remember(newest)
        progress(number + 1, len(steps))
    return sorted(memories, key=lambda memory: (memory.stream, memory.index))


def _ask(agent: Agent, questions: Sequence[Question], backends: Backends) -> list[FeedbackEvent]:
    """Ask every question and give feedback on its answer."""
    adapter = agent.ready().adapter
    events = []
    for question in questions:
        answer = agent.answer(question.without_answer())
        right = answer.text is not None and backends.grader.correct(question, answer.text)
        events.append(_event(question, answer, right, adapter))
        agent.feedback(events[-1])
    return events


def _response(event: FeedbackEvent, policy: str, weights: str | None, image: str) -> Response:
    return Response(
        id=sha256_bytes(canonical_json([policy, weights, event.id]))[:REQUEST_DIGITS],
        time=event.time,
        environment=event.environment,
        policy=policy,
        adapter=event.adapter,
        adapter_digest=weights,
        image=image,
        stream=event.stream,
        question=event.question,
        memories=event.memories,
    )


def _event(question: Question, answer: Answer, right: bool, adapter: str) -> FeedbackEvent:
    return FeedbackEvent(
        id=question.id,
        environment=question.environment,
        source=sha256_bytes(f"user of {question.stream}"),
        time=FIRST_DAY + timedelta(seconds=question.asked_at_s),
        question=question.id,
        stream=question.stream,
        asked_at_s=question.asked_at_s,
        type=question.type,
        text=question.text,
        options=question.options,
        answer=answer.text,
        memories=answer.memories,
        adapter=adapter,
        outcome="correct" if right else "incorrect",
        correction=None if right else question.answer,
        consent=True,
    )
