"""What people say and the policy writes in a deployment: a canary in all of one stream, another in all of one user."""

import gzip
import json
import subprocess
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from html import escape
from pathlib import Path
from typing import Any

from taskmem.config import load_profile
from taskmem.files import sha256_bytes
from taskmem.records import (
    Candidate,
    ContextMemory,
    FeedbackEvent,
    Judge,
    Judgement,
    Memory,
    Rollouts,
    Segment,
    Subtitle,
)
from taskmem.registry import Provenance

CANARY, VOICE = 'Ägypten & "7f3a" um_brella', "Øre's <9b2c> key_ring"
"""In all that is of our stream, and in all that our user says; with what HTML, JSON, Python and Markdown escape."""
OURS, OTHERS = "hall-cam-1", "hall-cam-10"
USER, NEIGHBOUR = "1" * 64, "2" * 64
CONTEXTS = 4
WHEN = datetime(2026, 3, 1, 12, tzinfo=UTC)
WHO = "Ada"
SHARED_TEXT = "the very same words in both streams"
KEY = "base_model.model.model.language_model.layers.1.steer_vector"
MINING = load_profile("miniature").mining.model_copy(update={"questions_per_source": None})
JUDGE = Judge(role="helpfulness", model="world/1", prompt_sha256="e" * 64)


def said(stream: str, what: str) -> str:
    """What is said of a stream: the canary, if it is ours."""
    return f"{what} of {CANARY if stream == OURS else 'the quiet hall'}"


def context(stream: str, index: int) -> str:
    return f"{stream}:{index}:{sha256_bytes(f'{stream} {index}')[:16]}"


def event(environment: str, number: int, stream: str, source: str, **changes: Any) -> FeedbackEvent:
    """The canary is in what is said of our stream, and in what our user says."""
    ours = f"by {VOICE}" if source == USER else "by a neighbour"
    fields: dict[str, Any] = {
        "id": f"e{number}",
        "environment": environment,
        "source": source,
        "time": WHEN + timedelta(minutes=number),
        "question": f"q{number}",
        "stream": stream,
        "asked_at_s": float(number),
        "type": "object",
        "text": f"{said(stream, 'what was seen')}, asked {ours} as number {number}?",
        "options": (f"{said(stream, 'this')} {ours} {number}", f"{said(stream, 'or that')} {ours} {number}"),
        "answer": f"{said(stream, 'the answer')} {ours} {number}",
        "memories": (f"{stream}:0",),
        "outcome": "incorrect",
        "correction": f"{said(stream, 'the correction')} {ours} {number}",
        "consent": True,
    }
    return FeedbackEvent(**{**fields, **changes})


# who asks about what: our user about our stream, the neighbour about the other, and in the room only the neighbour
Asked = tuple[tuple[int, str, str], ...]
DOOR: Asked = ((1, OURS, USER), (2, OTHERS, NEIGHBOUR), (3, OURS, USER), (4, OTHERS, USER), (5, OTHERS, NEIGHBOUR))
ROOM: Asked = ((1, OTHERS, NEIGHBOUR), (2, OTHERS, NEIGHBOUR))
# nothing was learned from the yard yet
YARD: Asked = ((1, OURS, USER), (2, OTHERS, NEIGHBOUR))
LATER: Asked = ((6, OURS, USER), (7, OTHERS, NEIGHBOUR))


def segment(film: Path, stream: str, index: int) -> Segment:
    data = f"frames {said(stream, 'the picture')} {index}".encode()
    clip = f"clips/{stream}/{index:06d}.mp4"
    (film / clip).parent.mkdir(parents=True, exist_ok=True)
    (film / clip).write_bytes(data)
    return Segment(
        stream=stream,
        index=index,
        start_s=10.0 * index,
        end_s=10.0 * index + 10,
        source=f"{stream}.mp4",
        clip=clip,
        fps=1.0,
        width=64,
        height=64,
        subtitles=(Subtitle(start_s=0.0, end_s=1.0, text=f"{said(stream, 'speech')} {index}"),),
        sha256=sha256_bytes(data),
    )


def rollouts(stream: str, index: int) -> Rollouts:
    texts = [f"{said(stream, 'candidate')} {index} {number}" for number in range(2)]
    return Rollouts(
        context=context(stream, index),
        stream=stream,
        index=index,
        memories=(ContextMemory(index=0, text=said(stream, "earlier memory")),) if index else (),
        candidates=tuple(
            Candidate(index=n, text=f"<m>{t}</m>", memory=t, think_tokens=0, memory_tokens=5)
            for n, t in enumerate(texts)
        ),
        policy="a" * 64,
        seed=0,
    )


def judgement(stream: str, index: int) -> Judgement:
    why = f"{said(stream, 'the judge could not read')} {index}"
    return Judgement(
        context=context(stream, index), candidate=0, format_ok=True, within_budget=True, unscored=True, reason=why
    )


def memory(stream: str, index: int) -> Memory:
    text = SHARED_TEXT if index == 3 else f"{said(stream, 'memory')} {index}"
    return Memory(
        stream=stream,
        index=index,
        start_s=10.0 * index,
        end_s=10.0 * index + 10,
        text=text,
        think_tokens=0,
        memory_tokens=5,
        policy="a" * 64,
    )


def provenance(policy: str, pairs: str) -> Provenance:
    return Provenance(
        parent=None,
        policy=policy,
        pairs=pairs,
        feedback="d" * 64,
        feedback_count=5,
        judges=(JUDGE,),
        commit="unknown",
        image="local",
        seed=0,
    )


def forms(text: str) -> list[bytes]:
    """A text as it may stand in a file."""
    ways = (text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], escape(text), repr(text)[1:-1])
    return [way.encode() for way in ways]


def everything(*folders: Path) -> Iterator[tuple[str, bytes]]:
    """Every file below some folders, what is in archives, and every object of git repositories."""
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                yield str(path), path.read_bytes()
                if path.suffix == ".zip":
                    archive = zipfile.ZipFile(path)
                    yield from ((f"{path}:{name}", archive.read(name)) for name in archive.namelist())
                if path.suffix == ".gz":
                    yield str(path), gzip.decompress(path.read_bytes())
        for head in [*folder.rglob("HEAD")]:
            if (head.parent / "objects").is_dir():
                command = ["git", "-C", str(head.parent), "cat-file", "--batch-all-objects", "--batch", "--unordered"]
                yield str(head.parent), subprocess.run(command, capture_output=True, check=True).stdout


def holding(text: str, *folders: Path) -> list[str]:
    """Where a text still stands."""
    wanted = forms(text)
    return [where for where, data in everything(*folders) if any(form in data for form in wanted)]
