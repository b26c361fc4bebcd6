"""The tiny base policy's recipe: clean captions of single segments, then of windows, then noise.

The noise makes a base that has something to learn: it states wrong facts, breaks the format, and repeats itself. Every fact type
must be seen reliably BEFORE the noise, for a policy cannot learn to focus on what it cannot see. Half of the windows carry a
task prompt, so that the task-prompt arm means something.
"""

import json
import math
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from taskmem.config import PolicySettings
from taskmem.errors import UserError
from taskmem.files import replace_directory, sha256_bytes
from taskmem.policy.encoding import Prompt, PromptEncoder
from taskmem.policy.grammar import completion_for, parse
from taskmem.policy.packing import sample_groups
from taskmem.policy.renderer import render
from taskmem.policy.transformers_policy import prepare_process
from taskmem.progress import Progress, silent
from taskmem.records import Context, ContextMemory, Segment, write_json
from taskmem.video.frames import Frames
from taskmem.world.checkpoint import build_model, build_processor, build_tokenizer
from taskmem.world.facts import ROOM, TYPES, VALUES, describe, known_room, read_facts, sample_facts, sample_stream
from taskmem.world.questions import question_text
from taskmem.world.render import SIDE, render_segment

SEGMENT_SECONDS = 10.0
LONGEST_STREAM = 24
SEEN = (2, 7)  # the frames that sampling at 0.2 fps keeps


@dataclass(frozen=True)
class Stage:
    """One stage of the recipe: optimiser steps, samples a step and peak learning rate."""

    steps: int
    batch: int
    learning_rate: float


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the base, its seed aside."""

    single: Stage = field(default_factory=lambda: Stage(540, 48, 2e-3))
    windows: Stage = field(default_factory=lambda: Stage(420, 32, 1e-3))
    noise: Stage = field(default_factory=lambda: Stage(120, 32, 8e-4))
    extra: Stage = field(
        default_factory=lambda: Stage(80, 32, 1e-3)
    )  # windows again, while a fact type is not seen well
    extra_rounds: int = 5
    task_share: float = 0.5
    task_obeyed: float = 0.95
    all_told: float = 0.15  # share of the clean windows whose memory tells everything
    new_room_told: float = 0.9
    precision: float = 0.9
    wrong_fact: float = 0.14
    broken_format: float = 0.10
    facts_told: tuple[float, ...] = (0.12, 0.28, 0.28, 0.2, 0.12)  # weights of one to five facts in a noisy memory

    @property
    def least_steps(self) -> int:
        """Optimiser steps where no extra round is needed."""
        return self.single.steps + self.windows.steps + self.noise.steps


@dataclass(frozen=True)
class Sample:
    """A context with its frames, the truth of its last segment and the completion to imitate."""

    context: Context
    frames: Mapping[str, Frames]
    facts: Mapping[str, str]
    target: str


class Sampler:
    """Draws training samples; one generator for everything, so that a seed fixes them all."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        self.recipe = recipe
        self._rng = random.Random(seed)
        self._noise = np.random.default_rng(seed)
        self._seed = seed
        self._drawn = 0

    def single(self) -> Sample:
        """One segment without history, everything told."""
        facts = sample_facts(self._rng)
        return self._sample([facts], self._rng.randrange(LONGEST_STREAM), set(TYPES), noisy=False)

    def window(self, noisy: bool) -> Sample:
        """A window of one to three segments with noisy preceding memories, a random choice of facts told."""
        length = self._rng.choices([1, 2, 3], [0.15, 0.15, 0.7])[0]
        stream = sample_stream(self._rng, length)
        # a window is shorter than three only at a stream's start
        last = self._rng.randint(length - 1, LONGEST_STREAM - 1) if length == 3 else length - 1
        if noisy:
            told = self._choice(self._rng.choices(range(1, 6), self.recipe.facts_told)[0])
        else:
            everything = self._rng.random() < self.recipe.all_told
            told = set(TYPES) if everything else self._choice(self._rng.randint(1, 3))
        task = self._task(last, told) if self._rng.random() < self.recipe.task_share else None
        return self._sample(stream, last, told, noisy, task)

    def _choice(self, count: int) -> set[str]:
        return set(self._rng.sample(TYPES, count))

    def _sample(
        self, stream: list[dict[str, str]], last: int, told: set[str], noisy: bool, task: str | None = None
    ) -> Sample:
        first = last - len(stream) + 1
        segments = tuple(self._segment(first + i) for i in range(len(stream)))
        memories = tuple(
            ContextMemory(index=first + i, text=self._told_before(facts)) for i, facts in enumerate(stream[:-1])
        )
        if not noisy and task is None:
            told = self._without_repetition(told, stream[-1], [m.text for m in memories])
        context = Context(segments=segments, memories=memories, task=task)
        frames = {s.sha256: self._film(f) for s, f in zip(segments, stream, strict=True)}
        return Sample(context, frames, stream[-1], self._target(stream[-1], told, noisy))

    def _without_repetition(self, told: set[str], facts: Mapping[str, str], memories: Sequence[str]) -> set[str]:
        """Clean memories name the room where it is new, and not where the preceding ones tell it already."""
        known = known_room(memories)
        if known == facts[ROOM]:
            return told - {ROOM} or {self._rng.choice([t for t in TYPES if t != ROOM])}
        return told | {ROOM} if known and self._rng.random() < self.recipe.new_room_told else told

    def _task(self, last: int, told: set[str]) -> str:
        """A task prompt; what it asks for is then told, mostly, in place of something else."""
        kind = self._rng.choice(TYPES)
        if kind not in told and self._rng.random() < self.recipe.task_obeyed:
            told.remove(self._rng.choice(sorted(told)))
            told.add(kind)
        return question_text(kind, self._rng.uniform(0, (last + 1) * SEGMENT_SECONDS))

    def _told_before(self, facts: Mapping[str, str]) -> str:
        told = self._choice(self._rng.choices(range(1, 6), self.recipe.facts_told)[0])
        return describe(self._perturbed(facts), told)

    def _perturbed(self, facts: Mapping[str, str]) -> dict[str, str]:
        wrong = {t for t in TYPES if self._rng.random() < self.recipe.wrong_fact}
        return {t: self._rng.choice([x for x in VALUES[t] if x != v]) if t in wrong else v for t, v in facts.items()}

    def _target(self, facts: Mapping[str, str], told: set[str], noisy: bool) -> str:
        if not noisy:
            return completion_for(describe(facts, told))
        memory = describe(self._perturbed(facts), told)
        completion = completion_for(memory)
        draw = self._rng.random()
        if draw < self.recipe.broken_format / 2:
            return completion.removesuffix("}")
        if draw < self.recipe.broken_format:
            return completion.replace(json.dumps({"description": memory}), memory)
        return completion

    def _segment(self, index: int) -> Segment:
        self._drawn += 1
        name = sha256_bytes(f"drawn {self._seed} {self._drawn}")
        return Segment(
            stream="drawn",
            index=index,
            start_s=index * SEGMENT_SECONDS,
            end_s=(index + 1) * SEGMENT_SECONDS,
            source="drawn",
            clip=name,
            fps=len(SEEN) / SEGMENT_SECONDS,
            width=SIDE,
            height=SIDE,
            sha256=name,
        )

    def _film(self, facts: Mapping[str, str]) -> Frames:
        """The frames a clip would show, with noise in place of the codec's."""
        film = render_segment(facts, self._rng)[list(SEEN)].astype(np.float32)
        film += self._noise.normal(0, 4, film.shape) + self._noise.normal(0, 4, (1, 1, 1, 3))
        return film.clip(0, 255).astype(np.uint8)


class Pretraining:
    """Trains one base. `run` returns the measured precision of each fact type before the noise."""

    def __init__(self, recipe: Recipe, settings: PolicySettings, seed: int, progress: Progress = silent) -> None:
        prepare_process()
        self.recipe = recipe
        self.seed = seed
        self.processor = build_processor(build_tokenizer())
        self.model = build_model(self.processor.tokenizer, seed)
        self._sampler = Sampler(recipe, seed)
        self._frames: dict[str, Frames] = {}
        self._encoder = PromptEncoder(self.processor, settings, lambda s: self._frames[s.sha256], kept_clips=8)
        self._optimiser = torch.optim.AdamW(self.model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
        self._progress = progress
        self._steps = 0

    def run(self) -> dict[str, float]:
        """The three stages; UserError if a fact type stays below the recipe's precision."""
        self._train(self.recipe.single, self._sampler.single)
        self._train(self.recipe.windows, lambda: self._sampler.window(noisy=False))
        precision = self.precision()
        for _ in range(self.recipe.extra_rounds):
            if min(precision.values()) >= self.recipe.precision:
                break
            self._train(self.recipe.extra, lambda: self._sampler.window(noisy=False))
            precision = self.precision()
        weak = {t: round(p, 3) for t, p in precision.items() if p < self.recipe.precision}
        if weak:
            raise UserError(
                f"seed {self.seed}: {weak} below precision {self.recipe.precision}; train longer or take another seed"
            )
        self._train(self.recipe.noise, lambda: self._sampler.window(noisy=True))
        return precision

    def precision(self, contexts: int = 256) -> dict[str, float]:
        """Share of the stated facts of each type that are true, sampled at the profile's temperature on new windows."""
        self.model.eval()
        right, stated = Counter[str](), Counter[str]()
        sampler = Sampler(self.recipe, self.seed + 1)
        for start in range(0, contexts, 64):
            samples = [sampler.window(noisy=False) for _ in range(min(64, contexts - start))]
            groups = sample_groups(self.model, self._encoder, self._prompts(samples), 1, range(len(samples)))
            for sample, (tokens,) in zip(samples, groups, strict=True):
                text = self._encoder.tokenizer.decode(tokens, skip_special_tokens=True)
                for kind, value in read_facts(parse(text).memory or "").items():
                    stated[kind] += 1
                    right[kind] += value == sample.facts[kind]
        self.model.train()
        return {t: right[t] / max(1, stated[t]) for t in TYPES}

    def save(self, path: Path, precision: Mapping[str, float]) -> None:
        """Write the checkpoint folder with its recipe."""
        temporary = path.with_name(f".{path.name}.partial")
        shutil.rmtree(temporary, ignore_errors=True)
        self.model.eval().save_pretrained(temporary)
        self.processor.save_pretrained(temporary)
        measured = {t: round(p, 4) for t, p in precision.items()}
        recipe = asdict(self.recipe)
        wanted = recipe.pop("precision")
        write_json(
            temporary / "recipe.json",
            {"seed": self.seed, "precision": measured, "precision_wanted": wanted, **recipe},
        )
        replace_directory(temporary, path)

    def _prompts(self, samples: list[Sample]) -> list[Prompt]:
        prompts = []
        for sample in samples:
            self._frames = dict(sample.frames)
            prompts.append(self._encoder.encode(sample.context, render(sample.context, self._encoder.settings)))
        return prompts

    def _train(self, stage: Stage, draw: Callable[[], Sample]) -> None:
        self.model.train()
        for rate in _rates(stage):
            samples = [draw() for _ in range(stage.batch)]
            targets = [self._encoder.completion_ids(s.target) for s in samples]
            inputs, labels = self._encoder.batch(self._prompts(samples), targets)
            loss: Any = self.model(**inputs, labels=labels, output_router_logits=True).loss
            for group in self._optimiser.param_groups:
                group["lr"] = rate
            self._optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self._optimiser.step()
            self._steps += 1
            self._progress(self._steps, max(self._steps, self.recipe.least_steps))


def _rates(stage: Stage, warmup: int = 40) -> Iterator[float]:
    """Linear warm-up, then half a cosine down to a twentieth of the peak."""
    for step in range(stage.steps):
        cosine = 0.5 * (1 + math.cos(math.pi * step / stage.steps)) * 0.95 + 0.05
        yield stage.learning_rate * min(1.0, (step + 1) / warmup) * cosine
