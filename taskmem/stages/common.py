"""What several stages read; without torch, for many need none."""

from dataclasses import dataclass
from pathlib import Path

from taskmem.config import Profile
from taskmem.errors import UserError
from taskmem.evaluation.metrics import Graded
from taskmem.evaluation.streaming import GradedAnswer
from taskmem.policy.stream import by_stream, window_context
from taskmem.records import Context, Question, Rollouts, Segment, read_records
from taskmem.video.frames import FramesOf, read_clip

SEGMENTS = "segments.jsonl"
MEMORIES = "memories.jsonl"
QUESTIONS = "questions.jsonl"
EVENTS = "events"
RESPONSES = "responses.jsonl"
ROLLOUTS = "rollouts.jsonl"
JUDGEMENTS = "judgements.jsonl"
PREFERENCES = "preferences.jsonl"
COMPARISONS = "comparisons.jsonl"
GRADED = "graded.jsonl"
SUMMARY = "summary.json"


@dataclass(frozen=True)
class Footage:
    """Segments and the means to read their frames."""

    segments: list[Segment]
    frames_of: FramesOf


def footage(folder: Path, profile: Profile) -> Footage:
    """The segments of a segmentation's output folder; UserError if it holds none."""
    limits = profile.video.limits
    segments = read_records(folder / SEGMENTS, Segment)
    if not segments:
        raise UserError(f"{folder / SEGMENTS}: holds no segments; see refused.jsonl beside it, or give another folder")
    return Footage(segments, lambda segment: read_clip(folder / segment.clip, limits))


def contexts_of(rollouts: list[Rollouts], segments: list[Segment], profile: Profile) -> list[Context]:
    """The contexts of cached rollouts, rebuilt from the segments and the memories kept with them.

    UserError if the segments are not those they were drawn from.
    """
    streams = by_stream(segments)
    contexts = []
    for cached in rollouts:
        stream = streams.get(cached.stream, [])
        position = next((i for i, s in enumerate(stream) if s.index == cached.index), None)
        if position is None:
            raise UserError(
                f"rollouts of context {cached.context}: no such segment; give the segments they were drawn from"
            )
        memories = {m.index: m.text for m in cached.memories}
        contexts.append(window_context(stream, memories, position, profile.policy.window))
    return contexts


def questions_about(path: Path, segments: list[Segment]) -> list[Question]:
    """The questions of a file; UserError if it holds none about the streams of `segments`.

    Questions about a stream that was refused stay in: nothing was remembered of it.
    """
    questions = read_records(path, Question)
    if {q.stream for q in questions}.isdisjoint(s.stream for s in segments):
        raise UserError(
            f"{path}: no question about any of these streams; give the questions that belong to the segments"
        )
    return questions


def read_graded(arm: Path) -> list[Graded]:
    """The graded answers of an evaluated arm."""
    return [answer.graded for answer in read_records(arm / GRADED, GradedAnswer)]
