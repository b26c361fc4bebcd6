"""phase_one_gspo: segments and a base policy in, a policy out."""

import shutil
from pathlib import Path

from taskmem.backends import Backends
from taskmem.config import Profile
from taskmem.evaluation.streaming import ask, grade
from taskmem.phase_one.ranks import Ranks
from taskmem.phase_one.train import PhaseOneInputs, train_phase_one
from taskmem.policy.stream import by_stream, watch
from taskmem.policy.transformers_policy import TransformersPolicy, prepare_process
from taskmem.progress import Progress, silent
from taskmem.stages.common import footage, questions_about


def phase_one(
    segments: Path,
    base: Path,
    development: Path,
    questions: Path,
    backends: Backends,
    profile: Profile,
    seed: int,
    out: Path,
    progress: Progress = silent,
    ranks: Ranks | None = None,
) -> None:
    """Train `out`/policy from `base`; the checkpoint is picked by accuracy on the development split's questions.

    `segments` and `development` are output folders of segmentation, `questions` a JSON Lines file. Resumes from
    `out`/checkpoints, which is removed at the end. All processes of `ranks` (one, if not given) call it with the same arguments.
    """
    prepare_process()
    ranks = ranks or Ranks()
    aside = out / ".checkpoints.old"
    if ranks.first:
        shutil.rmtree(aside, ignore_errors=True)
    learned, held = footage(segments, profile), footage(development, profile)
    asked = questions_about(questions, held.segments)
    streams = by_stream(held.segments)

    def validate(policy: TransformersPolicy) -> float:
        policy.encoder.read_with(held.frames_of)
        memories, _ = watch(policy, streams, profile.policy.window, seed)
        graded = grade(ask(asked, memories, backends.answerer), backends.grader)
        return sum(g.correct for g in graded) / len(graded)

    inputs = PhaseOneInputs(learned.segments, learned.frames_of, backends.judges, backends.strong(seed), validate)
    train_phase_one(base, inputs, profile, seed, out, progress, ranks)
    if ranks.first and (out / "checkpoints").exists():
        # moved aside first: half a folder of checkpoints would be taken for all of them
        shutil.rmtree((out / "checkpoints").replace(aside))
