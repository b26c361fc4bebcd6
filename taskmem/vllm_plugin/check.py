"""Does vLLM write of an exported policy what transformers writes of the original? Greedily, in float32, token for token."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path

import torch

from taskmem.config import PolicySettings, Profile
from taskmem.errors import UserError
from taskmem.policy.export import Check
from taskmem.policy.exported import Checked
from taskmem.policy.renderer import render
from taskmem.policy.stream import by_stream, watch
from taskmem.policy.transformers_policy import TransformersPolicy, load_checkpoint, prepare_process
from taskmem.records import Context, Segment, one_line, parse_line
from taskmem.video.frames import FramesOf
from taskmem.vllm_plugin import greedy

STREAMS = 2
LONGEST = 64  # tokens compared of a context
MADE_HERE = Path(".venv-serving")  # by `make serving-setup`
# the engine in the process itself, for it lives for one request
ENGINE: Mapping[str, str] = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


@dataclass(frozen=True)
class Reading:
    """A context, its prompt as text (a placeholder for each clip) and as token ids, and what transformers wrote."""

    context: Context
    text: str
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Sample:
    """What a check reads: segments, where their clips lie and how their frames are read, and the settings to read with."""

    segments: Sequence[Segment]
    clip_of: Callable[[Segment], Path]
    frames_of: FramesOf
    profile: Profile


def serving_python(given: Path | None) -> Path:
    """The interpreter of an environment with vLLM: of `given` (or that itself), else this one, else of ./.venv-serving.

    UserError if there is none.
    """
    if given is None and find_spec("vllm") is not None:
        return Path(sys.executable)
    python = given if given is not None and given.is_file() else (given or MADE_HERE) / "bin" / "python"
    if not python.is_file():
        raise UserError(
            f"{python}: no such file; run `make serving-setup`, name an environment that holds vLLM and taskmem with "
            "--serving, or skip the check with --no-check"
        )
    return python.absolute()


def greedy_check(policy: Path, digest: str, sample: Sample, python: Path) -> Check:
    """A check of exports of `policy`: vLLM, in `python`'s environment, must read and write as transformers does.

    Both watch the first segments of two streams, a window and one more of each; the later contexts hold memories that the
    policy wrote. UserError names the first segment where a prompt or a token differs.
    """

    def check(exported: Path) -> Checked:
        settings = _greedy(sample.profile.policy)
        read, request = _by_transformers(policy, digest, exported, settings, sample)
        answer = _by_vllm(request, python)
        return compare(read, answer)

    return check


def _greedy(settings: PolicySettings) -> PolicySettings:
    sampling = settings.sampling.model_copy(update={"temperature": 1.0, "top_k": 1, "top_p": 1.0})
    longest = min(LONGEST, settings.max_completion_tokens)
    return settings.model_copy(update={"sampling": sampling, "max_completion_tokens": longest})


def _by_transformers(
    policy: Path, digest: str, exported: Path, settings: PolicySettings, sample: Sample
) -> tuple[list[Reading], greedy.Request]:
    """What transformers reads and writes, and the same as a request to vLLM."""
    prepare_process()
    model, processor = load_checkpoint(policy, torch.float32)
    writer = TransformersPolicy.of(model, processor, settings, sample.frames_of, digest)
    streams = sorted(by_stream(sample.segments).items())[:STREAMS]
    _, contexts = watch(writer, {name: stream[: settings.window + 1] for name, stream in streams}, settings.window, 0)
    texts = [
        processor.apply_chat_template(render(context, settings), tokenize=False, add_generation_prompt=True)
        for context in contexts
    ]
    read = [
        Reading(context, text, writer.prompt(context).ids, group[0].tokens)
        for context, text, group in zip(contexts, texts, writer.write(contexts, 1, 0), strict=True)
    ]
    request = greedy.Request(
        policy=str(exported.absolute()),
        prompts=tuple(
            greedy.Prompt(
                text=reading.text,
                clips=tuple(
                    greedy.Clip(path=str(sample.clip_of(s).absolute()), fps=s.fps) for s in reading.context.segments
                ),
            )
            for reading in read
        ),
        longest=max(len(reading.prompt) for reading in read),
        max_tokens=settings.max_completion_tokens,
        end=writer.encoder.end_id,
        forbidden=writer.encoder.forbidden_ids,
        limits=sample.profile.video.limits,
    )
    return read, request


def _by_vllm(request: greedy.Request, python: Path) -> greedy.Answer:
    with tempfile.TemporaryDirectory() as scratch:
        asked, answered = Path(scratch) / "request.json", Path(scratch) / "answer.json"
        asked.write_text(request.model_dump_json(), encoding="utf-8")
        run = subprocess.run(
            [str(python), "-m", "taskmem.vllm_plugin.greedy", str(asked), str(answered)],
            env={**os.environ, **ENGINE},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        if run.returncode != 0 or not answered.is_file():
            last = next((line for line in reversed(run.stdout.splitlines()) if line.strip()), "no output")
            raise UserError(f"{python}: vLLM ended with {run.returncode} ({one_line(last)}); mend it or use --no-check")
        return parse_line(answered.read_text(encoding="utf-8"), greedy.Answer, "vLLM's answer")


def compare(read: Sequence[Reading], answer: greedy.Answer) -> Checked:
    """How much was equal; UserError naming segment and position if anything differs between transformers and vLLM."""
    for reading, written in zip(read, answer.written, strict=True):
        where = f"stream {reading.context.current.stream}, segment {reading.context.current.index}"
        sides = {"prompt": (reading.prompt, written.prompt), "completion": (reading.tokens, written.tokens)}
        for what, (ours, theirs) in sides.items():
            if ours != theirs:
                pairs = enumerate(zip_longest(ours, theirs))
                at, (one, other) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
                raise UserError(
                    f"{where}: token {at} of the {what} is {one} with transformers and {other} with vLLM "
                    f"{answer.vllm}; the export is not used"
                )
    return Checked(vllm=answer.vllm, contexts=len(read), tokens=sum(len(reading.tokens) for reading in read))
