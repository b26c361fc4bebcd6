"""What several stages read."""

from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel

from taskmem.config import Profile
from taskmem.errors import UserError
from taskmem.policy.encoding import FramesOf, clip_reader
from taskmem.policy.stream import by_stream, window_context
from taskmem.policy.transformers_policy import (
    TransformersPolicy,
    load_checkpoint,
    policy_digest,
    policy_reference,
    prepare_process,
)
from taskmem.records import Context, Question, Rollouts, Segment, read_json, read_records
from taskmem.steer import read_adapter
from taskmem.video.frames import read_clip

SEGMENTS = "segments.jsonl"
MEMORIES = "memories.jsonl"
QUESTIONS = "questions.jsonl"
EVENTS = "events.jsonl"
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
    return Footage(segments, clip_reader(folder, lambda path: read_clip(path, limits)))


def load_policy(path: Path, profile: Profile, frames_of: FramesOf, adapter: Path | None = None) -> TransformersPolicy:
    """The policy of a checkpoint folder, steered by the adapter in `adapter` if one is given."""
    prepare_process()
    model, processor = load_checkpoint(path)
    policy = TransformersPolicy.of(model, processor, profile.policy, frames_of, policy_digest(path))
    if adapter is not None:
        try:
            read_adapter(adapter)
            trained_on = str(read_json(adapter / "adapter_config.json").get("base_model_name_or_path"))
            if trained_on != (wanted := policy_reference(policy.digest)):
                raise ValueError(f"trained on {trained_on[:19]}, not on the policy {wanted[:19]}; train it again")
            # PEFT puts the steer layer into `model` itself, which the policy goes on using
            PeftModel.from_pretrained(model, str(adapter))
        except (ValueError, OSError) as error:
            raise UserError(f"{adapter}: {error}") from None
        policy.adapter = adapter.name
    return policy


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
