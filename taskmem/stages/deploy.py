"""deployment and feedback_collection: the agent works, people ask, their questions come back."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from taskmem.backends import Backends
from taskmem.config import Profile
from taskmem.evaluation.protocols import Grader
from taskmem.evaluation.streaming import ask, feedback_and_rest, visible
from taskmem.feedback import EventLog, collect, write_collection
from taskmem.feedback.collection import Watermark
from taskmem.files import sha256_bytes
from taskmem.policy.stream import by_stream, watch
from taskmem.progress import Progress, silent
from taskmem.records import FeedbackEvent, Memory, Question, write_records
from taskmem.stages.common import EVENTS, MEMORIES, footage, questions_about
from taskmem.stages.policies import load_policy

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
) -> None:
    """Watch the deployment's streams with the policy and answer each environment's first questions from memory.

    Writes `out`/memories.jsonl and `out`/events.jsonl, one feedback event per question asked.
    """
    film = footage(segments, profile)
    writer = load_policy(policy, profile, film.frames_of)
    memories, _ = watch(writer, by_stream(film.segments), profile.policy.window, seed, progress=progress)
    write_records(out / MEMORIES, memories)
    first, _ = feedback_and_rest(questions_about(questions, film.segments), profile.evaluation)
    (out / EVENTS).unlink(missing_ok=True)
    with EventLog(out / EVENTS) as log:
        for question, answer in ask(first, memories, backends.answerer):
            log.append(_event(question, answer, memories, backends.grader))
    (out / f"{EVENTS}.lock").unlink()


def _event(question: Question, answer: str | None, memories: list[Memory], grader: Grader) -> FeedbackEvent:
    right = answer is not None and grader.correct(question, answer)
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
        answer=answer,
        memories=tuple(f"{m.stream}:{m.index}" for m in visible(memories, question)),
        outcome="correct" if right else "incorrect",
        correction=None if right else question.answer,
        consent=True,
    )


def feedback_collection(events: Path, since: Watermark | None, profile: Profile, out: Path) -> None:
    """Collect the recent questions of every environment from an event log; see `taskmem.feedback.collect`."""
    write_collection(out, collect(events, since, profile.mining))
