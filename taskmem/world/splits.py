"""The world's four splits on disk: videos, truth and questions. Streams never stand in two splits."""

import random
from pathlib import Path

from taskmem.config import WorldSettings
from taskmem.progress import Progress, silent
from taskmem.records import write_records
from taskmem.world.facts import sample_stream
from taskmem.world.judges import Truth
from taskmem.world.questions import ask_about
from taskmem.world.render import FPS, FRAMES, write_stream

SPLITS = ("phase_one", "deployment", "development", "held_out")


def render_split(out: Path, split: str, settings: WorldSettings, seed: int, progress: Progress = silent) -> None:
    """Write `out`/videos/<stream>.mp4, `out`/truth.jsonl and `out`/questions.jsonl for one of `SPLITS`.

    Every video has generators of its own, named by split, seed and number, so that none depends on another.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}")
    truths, questions = [], []
    count: int = getattr(settings, split)
    for number in range(count):
        stream = f"{split}-s{seed}-{number:03d}"
        facts = sample_stream(random.Random(f"facts-{stream}"), settings.stream_segments)
        write_stream(out / "videos" / f"{stream}.mp4", facts, random.Random(f"pixels-{stream}"))
        truths += [Truth(stream=stream, index=i, facts=f) for i, f in enumerate(facts)]
        questions += ask_about(stream, facts, random.Random(f"questions-{stream}"), FRAMES / FPS)
        progress(number + 1, count)
    write_records(out / "truth.jsonl", truths)
    write_records(out / "questions.jsonl", questions)
