"""Does the agent stay as quick when a stream grows long?

    make bench-agent          about four minutes on one core

A stream of 10,000 segments, on SQLite and on PostgreSQL by turns. Around segment 10, 30, 100 ... 10,000 the time from a segment's
bytes to its stored memory is taken, and the time from a question to its stored answer; medians of 30 each. Both databases lie in
memory where there is such a folder: a disk's sync takes the same for every segment, and would hide all the rest.
What is measured is the agent: checking the clip in the decoding process, restoring the window, storing memory, clip and index;
finding what the answerer may see, and storing the answer. The policy is a stand-in that describes a segment's facts at once (its
own time is the same for every segment, since the window is), the answerer is the world's, which reads what its budget lets it.
Segments between those that are timed are stored by the same function, many in a transaction.
Wanted: the last over the first near 1 for segments; for questions an exponent well below 1 (1 would be growth with the stream).
"""

import math
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.postgresql import postgresql
from benchmarks.results import write_result
from taskmem.agent.asking import Asker
from taskmem.agent.clips import ClipMaker
from taskmem.agent.contracts import Asked
from taskmem.agent.remembered import New, append, stream_of
from taskmem.agent.storage import Storage
from taskmem.agent.writing import Given, Writer
from taskmem.config import Profile, load_profile
from taskmem.endpoint.keys import ApiKey
from taskmem.endpoint.media import Clips
from taskmem.files import sha256_bytes
from taskmem.policy.protocols import Completion, Policy
from taskmem.records import Context, Memory, Segment
from taskmem.world.facts import describe, sample_facts
from taskmem.world.judges import WorldAnswerer
from taskmem.world.render import SIDE, render_segment, write_mp4

POINTS = (10, 30, 100, 300, 1000, 3000, 10_000)
TIMED = 30
CHARACTERS = 6_000  # what the answerer may read: about seventy memories
ENVIRONMENT, STREAM = "bench", "camera"
KEPT = (2, 7)
MEMORY = Path("/dev/shm")
console = Console(width=140)


def told(index: int) -> str:
    """The memory of a segment."""
    return describe(sample_facts(random.Random(index)))


class Describer:
    """A policy that takes no time: it tells the facts that were drawn for a segment."""

    digest, adapter = "0" * 64, "none"

    def write(self, contexts: Sequence[Context], n: int, seed: int) -> list[list[Completion]]:
        """See `Policy.write`."""
        texts = [told(context.current.index) for context in contexts]
        return [[Completion(text, (), 0, text, len(text.split()))] * n for text in texts]


@dataclass
class Side:
    """One database, and the agent's parts on it."""

    storage: Storage
    writer: Writer
    asker: Asker
    profile: Profile
    clip: bytes
    done: int = 0

    def ingest(self, count: int) -> list[float]:
        """Seconds for each of so many segments, one after the other."""
        taken = []
        for index in range(self.done, self.done + count):
            given = Given(ENVIRONMENT, STREAM, index, self.clip, sampled=True)
            start = time.perf_counter()
            assert self.writer.write(given).new
            taken.append(time.perf_counter() - start)
        self.done += count
        return taken

    def fill(self, upto: int) -> None:
        """Store segments up to a number, 500 in a transaction."""
        while self.done < upto:
            with self.storage.writing(ENVIRONMENT, STREAM) as connection:
                for index in range(self.done, min(upto, self.done + 500)):
                    seen = stream_of(connection, ENVIRONMENT, STREAM)
                    append(connection, seen, self._new(index), self.profile.policy.window)
            self.done = min(upto, self.done + 500)

    def ask(self, count: int) -> list[float]:
        """Seconds for each of so many questions about moments of the whole stream."""
        rng, taken = random.Random(self.done), []
        for number in range(count):
            at = rng.randrange(self.done) * 10 + 5
            text = (
                f"what was carried at {at // 60}:{at % 60:02d}?" if number % 2 else f"{told(at // 10)}, when was that?"
            )
            asked = Asked(id=f"q{self.done}-{number}", text=text)
            start = time.perf_counter()
            self.asker.ask(ENVIRONMENT, STREAM, asked)
            taken.append(time.perf_counter() - start)
        return taken

    def _new(self, index: int) -> New:
        start, end = index * 10.0, index * 10.0 + 10
        digest = sha256_bytes(self.clip)
        segment = Segment(
            stream=STREAM,
            index=index,
            start_s=start,
            end_s=end,
            source=STREAM,
            clip=f"clips/{STREAM}/{index:06d}.mp4",
            fps=self.profile.video.fps,
            width=SIDE,
            height=SIDE,
            sha256=digest,
        )
        memory = Memory(
            stream=STREAM,
            index=index,
            start_s=start,
            end_s=end,
            text=told(index),
            think_tokens=0,
            memory_tokens=9,
            policy=Describer.digest,
        )
        return New(ENVIRONMENT, segment, self.clip, memory, digest)


@contextmanager
def opened(url: str, maker: ClipMaker, profile: Profile, clip: bytes) -> Iterator[Side]:
    """The agent's parts on a database."""

    def policy_for(environment: str, key: ApiKey, clips: Clips) -> Policy:
        return Describer()

    with Storage(url) as storage:
        writer = Writer(storage, maker, policy_for, profile.video, profile.policy.window, 0)
        yield Side(storage, writer, Asker(storage, WorldAnswerer(), CHARACTERS), profile, clip)


def measured(sides: dict[str, Side], points: Sequence[int]) -> dict[str, dict[str, dict[str, float]]]:
    """Medians in milliseconds, by side, kind and number of segments."""
    found: dict[str, dict[str, dict[str, float]]] = {name: {"segment_ms": {}, "question_ms": {}} for name in sides}
    for point in points:
        timed = min(TIMED, point)
        for name, side in sides.items():
            side.fill(point - timed)
            taken = side.ingest(timed)
            found[name]["segment_ms"][str(point)] = round(median(taken) * 1000, 3)
        for name, side in sides.items():
            found[name]["question_ms"][str(point)] = round(median(side.ask(TIMED)) * 1000, 3)
            segment, question = (found[name][kind][str(point)] for kind in ("segment_ms", "question_ms"))
            console.print(f"{name:11} {point:6} segments: {segment:8.2f} ms a segment, {question:8.2f} ms a question")
    return found


def ratios_of(found: dict[str, Any], points: Sequence[int]) -> dict[str, float]:
    """The last over the first of each curve, and the exponent with which questions grow between them."""
    first, last = str(points[0]), str(points[-1])
    ratios = {}
    for name, curves in found.items():
        for kind, curve in curves.items():
            ratios[f"{name}_{kind.removesuffix('_ms')}_last_over_first"] = round(curve[last] / curve[first], 3)
        grown = math.log(curves["question_ms"][last] / curves["question_ms"][first])
        ratios[f"{name}_question_exponent"] = round(grown / math.log(points[-1] / points[0]), 3)
    return ratios


def rendered_clip(folder: Path) -> bytes:
    """A segment's clip as the policy sees it."""
    rng = random.Random(0)
    path = folder / "clip.mp4"
    write_mp4(path, render_segment(sample_facts(rng), rng)[list(KEPT)])
    return path.read_bytes()


def main(
    longest: Annotated[int, typer.Option("--longest", help="Segments of the stream.", min=30)] = POINTS[-1],
    save: Annotated[bool, typer.Option("--save/--no-save", help="Write benchmarks/results/agent.json.")] = True,
) -> None:
    """Take both curves on both databases."""
    profile = load_profile("miniature")
    points = [point for point in POINTS if point < longest] + [longest]
    folder = MEMORY if MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(dir=folder) as work, postgresql(folder) as server:
        clip = rendered_clip(Path(work))
        urls = {"sqlite": f"sqlite:///{work}/agent.db", "postgresql": server.new_database()}
        with (
            ClipMaker(profile.video, 1, 60.0) as clips,
            opened(urls["sqlite"], clips, profile, clip) as sqlite,
            opened(urls["postgresql"], clips, profile, clip) as postgres,
        ):
            clips.taken(clip)  # the decoding process starts
            found = measured({"sqlite": sqlite, "postgresql": postgres}, points)
    ratios = ratios_of(found, points)
    if save:
        settings = {
            "points": points,
            "timed": TIMED,
            "answer_characters": CHARACTERS,
            "window": profile.policy.window,
            "in_memory": folder is not None,
        }
        console.print(f"{write_result('agent', settings, found, ratios)}")
    for name, ratio in ratios.items():
        console.print(f"{name}: {ratio}")


if __name__ == "__main__":
    typer.run(main)
