"""What vLLM writes for given prompts, greedily: one half of an export's check, a process of its own.

Usage: python -m taskmem.vllm_plugin.greedy REQUEST ANSWER   (JSON files; where vLLM is installed)
"""

import sys
from pathlib import Path
from typing import Any

from taskmem.config import VideoLimits
from taskmem.files import atomic_write
from taskmem.records import Part, Record, parse_line
from taskmem.video.frames import Frames, read_clip


class Clip(Part):
    """A clip file and its frames a second."""

    path: str
    fps: float


class Prompt(Part):
    """The text that the chat template wrote, one video placeholder in it for each clip."""

    text: str
    clips: tuple[Clip, ...]


class Request(Record):
    """What to write: at most `max_tokens`, until `end`, never one of `forbidden` (token ids)."""

    policy: str
    prompts: tuple[Prompt, ...]
    longest: int
    max_tokens: int
    end: int
    forbidden: tuple[int, ...]
    limits: VideoLimits


class Written(Part):
    """The token ids of a prompt as vLLM read it, and those that followed."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]


class Answer(Record):
    """One `Written` for each prompt, and vLLM's version."""

    vllm: str
    written: tuple[Written, ...]


def as_video(frames: Frames, fps: float) -> tuple[Frames, dict[str, Any]]:
    """All frames [T, H, W, 3] of a clip as vLLM takes a video that is sampled already."""
    metadata = {
        "fps": fps,
        "duration": len(frames) / fps,
        "total_num_frames": len(frames),
        "frames_indices": list(range(len(frames))),
        "video_backend": "opencv",
        "do_sample_frames": False,
    }
    return frames, metadata


def write(request: Request) -> Answer:
    """Load the policy in float32 and write."""
    import vllm  # noqa: PLC0415 - the request's classes are needed where vLLM is not

    prompts = [
        {
            "prompt": prompt.text,
            "multi_modal_data": {
                "video": [as_video(read_clip(Path(c.path), request.limits), c.fps) for c in prompt.clips]
            },
        }
        for prompt in request.prompts
    ]
    engine = vllm.LLM(
        model=request.policy,
        dtype="float32",
        enforce_eager=True,
        max_model_len=request.longest + request.max_tokens,
        max_num_seqs=16,
        limit_mm_per_prompt={"image": 0, "video": max(len(prompt.clips) for prompt in request.prompts)},
    )
    sampling = vllm.SamplingParams(
        temperature=0,
        max_tokens=request.max_tokens,
        ignore_eos=True,
        stop_token_ids=[request.end],
        logit_bias=dict.fromkeys(request.forbidden, -100.0),
    )
    outputs = engine.generate(prompts, sampling, use_tqdm=False)
    written = tuple(
        Written(prompt=tuple(out.prompt_token_ids), tokens=tuple(out.outputs[0].token_ids)) for out in outputs
    )
    return Answer(vllm=vllm.__version__, written=written)


def main(request: Path, answer: Path) -> None:
    """Read a request, write its answer."""
    asked = parse_line(request.read_text(encoding="utf-8"), Request, str(request))
    atomic_write(answer, write(asked).model_dump_json())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
