"""streaming_eval: a policy, perhaps steered or prompted, on streams and questions it has never seen."""

from collections.abc import Sequence
from pathlib import Path

from taskmem.backends import Backends
from taskmem.config import Profile
from taskmem.errors import UserError
from taskmem.evaluation.metrics import breakdown
from taskmem.evaluation.protocols import FactChecker
from taskmem.evaluation.streaming import ask, graded_answers
from taskmem.feedback import read_collection
from taskmem.policy.renderer import task_prompt
from taskmem.policy.stream import by_stream, watch
from taskmem.progress import Progress, silent
from taskmem.records import Memory, write_json, write_records
from taskmem.stages.common import GRADED, MEMORIES, SUMMARY, footage, questions_about
from taskmem.stages.policies import load_policy


def streaming_eval(
    segments: Path,
    questions: Path,
    policy: Path,
    backends: Backends,
    profile: Profile,
    seed: int,
    out: Path,
    adapter: Path | None = None,
    task: str | None = None,
    progress: Progress = silent,
) -> None:
    """Evaluate one arm: write every memory, answer every question from memory alone, grade the answers.

    `task` is a task prompt. Writes `out`/memories.jsonl, graded.jsonl and summary.json (the measures, format_rate and
    wrong_fact_rate).
    """
    film = footage(segments, profile)
    asked = questions_about(questions, film.segments)
    writer = load_policy(policy, profile, film.frames_of, adapter)
    memories, _ = watch(writer, by_stream(film.segments), profile.policy.window, seed, task, progress)
    answers = graded_answers(ask(asked, memories, backends.answerer), backends.grader)
    write_records(out / MEMORIES, memories)
    write_records(out / GRADED, answers)
    measures = breakdown([a.graded for a in answers], profile.evaluation, seed).model_dump(mode="json")
    write_json(out / SUMMARY, {**measures, **rates(memories, backends.checker)})


def rates(memories: Sequence[Memory], checker: FactChecker) -> dict[str, float]:
    """Share of outputs that keep the grammar, and share of stated facts that are wrong."""
    checked = [checker.check(m.stream, m.index, m.text) for m in memories if m.text is not None]
    stated = sum(facts for facts, _ in checked)
    return {
        "format_rate": sum(m.text is not None for m in memories) / max(1, len(memories)),
        "wrong_fact_rate": sum(wrong for _, wrong in checked) / max(1, stated),
    }


def recent_task_prompt(feedback: Path, environment: str, profile: Profile) -> str:
    """The task prompt made of an environment's recent questions."""
    questions = read_collection(feedback).questions.get(environment, ())
    if not questions:
        raise UserError(f"{feedback}: no questions of environment {environment} to make a task prompt of")
    return task_prompt(questions, profile.policy.task_questions)
