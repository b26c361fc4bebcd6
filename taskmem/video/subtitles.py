"""Speech turns from SRT, WebVTT or an embedded text track, read tolerantly: what is malformed is counted."""

import html
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import zip_longest
from pathlib import Path

from av.packet import Packet
from av.subtitles.stream import SubtitleStream

from taskmem.files import sha256_bytes
from taskmem.records import Subtitle
from taskmem.video.probe import RefusedError, regular_file

UNKNOWN = "unknown"
TURN_BYTES = 32  # what a turn costs in a record besides its text
COPIES = 4  # turns cross segment borders; more copies than this of the whole file is a bomb

_TIME = r"(?:(\d{1,4}):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})"
_TIMING = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?:\s|$)")
_LINES = re.compile(r"\r\n|\r|\n")
# No pattern below can match across a "<" or "{": a long line of them costs linear time.
_VOICE = re.compile(r"<v(?:\.[^\s<>.]+)*[ \t]+([^<>]*)>")
_TAG = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_VTT_BLOCKS = ("WEBVTT", "NOTE", "STYLE", "REGION")


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of speech; seconds, exact."""

    start: Fraction
    end: Fraction
    text: str
    speaker: str = UNKNOWN


@dataclass(frozen=True)
class Sidecar:
    """A subtitle file's turns, the SHA-256 of its bytes, and what was wrong with it, or None."""

    turns: tuple[Turn, ...]
    sha256: str
    problem: str | None


def read_sidecar(path: Path, max_bytes: int) -> Sidecar:
    """Read `path` (.srt, or .vtt for WebVTT) in UTF-8 or UTF-16 with a byte-order mark; RefusedError if that fails."""
    with (
        regular_file(path, max_bytes, "limits.max_subtitle_bytes") as descriptor,
        os.fdopen(os.dup(descriptor), "rb") as handle,
    ):
        data = handle.read(max_bytes)
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise RefusedError(f"neither UTF-8 nor UTF-16 at byte {error.start}; its subtitles were left out") from None
    turns, malformed = parse(text, webvtt=path.suffix.lower() == ".vtt")
    problem = f"{malformed} malformed cues left out, {len(turns)} turns kept" if malformed else None
    return Sidecar(tuple(turns), sha256_bytes(data), problem)


def parse(text: str, *, webvtt: bool) -> tuple[list[Turn], int]:
    """The turns of a SubRip or WebVTT document, and how many cues were malformed."""
    turns: list[Turn] = []
    malformed = 0
    for block in _blocks(_LINES.split(text)):
        if webvtt and block[0].startswith(_VTT_BLOCKS):
            continue
        marks = [i for i, line in enumerate(block) if "-->" in line]
        malformed += not marks
        for mark, after in zip_longest(marks, marks[1:]):
            body = block[mark + 1 : after]
            if after is not None and body and body[-1].strip().isdigit():
                body = body[:-1]  # the number of the next cue, where the blank line between them is missing
            span = _span(block[mark])
            if span is None:
                malformed += 1
            else:
                turns += _turns(*span, "\n".join(body), entities=webvtt)
    return turns, malformed


def _blocks(lines: Iterable[str]) -> Iterator[list[str]]:
    block: list[str] = []
    for line in lines:
        if line.strip():
            block.append(line)
        elif block:
            yield block
            block = []
    if block:
        yield block


def _span(line: str) -> tuple[Fraction, Fraction] | None:
    match = _TIMING.match(line)
    if match is None:
        return None
    start, end = _seconds(match.groups()[:4]), _seconds(match.groups()[4:])
    return (start, end) if end > start else None


def _seconds(parts: Sequence[str | None]) -> Fraction:
    hours, minutes, seconds, fraction = parts
    whole = int(hours or 0) * 3600 + int(minutes or 0) * 60 + int(seconds or 0)
    return whole + Fraction(int((fraction or "0").ljust(3, "0")), 1000)


def _turns(start: Fraction, end: Fraction, text: str, *, entities: bool) -> Iterator[Turn]:
    """A cue's turns: one for each voice tag, and one for the words before the first."""
    pieces = _VOICE.split(text)
    speakers = [UNKNOWN, *pieces[1::2]]
    for speaker, words in zip(speakers, pieces[::2], strict=True):
        plain = _plain(words, entities)
        if plain:
            yield Turn(start, end, plain, _plain(speaker, entities) or UNKNOWN)


def _plain(text: str, entities: bool) -> str:
    bare = _TAG.sub("", text)
    bare = html.unescape(bare) if entities else bare
    return " ".join(_CONTROL.sub(" ", bare).split())


class EmbeddedTurns:
    """Collects the turns of one embedded text track while its container is demuxed."""

    def __init__(self, stream: SubtitleStream | None, max_bytes: int):
        self._index = None if stream is None else stream.index
        self._codec = "" if stream is None else stream.codec_context.name
        self._left = self._limit = max_bytes
        self._turns: list[Turn] = []
        self._malformed = 0

    def add(self, packet: Packet) -> None:
        """Take a packet if it belongs to the track; times stay in the container's clock."""
        if packet.stream_index != self._index or self._left < 0:
            return
        self._left -= packet.size + TURN_BYTES
        if self._left < 0:
            self._turns.clear()
            return
        cue = self._cue(bytes(packet))
        if cue is None:
            return
        if packet.pts is None or not packet.duration or packet.duration < 0 or not packet.time_base:
            self._malformed += 1
            return
        text, speaker = cue
        start = packet.pts * packet.time_base
        for turn in _turns(start, start + packet.duration * packet.time_base, text, entities=self._codec == "webvtt"):
            named = turn if turn.speaker != UNKNOWN else Turn(turn.start, turn.end, turn.text, speaker)
            self._turns.append(named)

    def _cue(self, data: bytes) -> tuple[str, str] | None:
        """A packet's text and speaker; None for an empty packet, which only ends the cue before it."""
        if self._codec == "mov_text":
            data = data[2 : 2 + int.from_bytes(data[:2], "big")]
        try:
            text = data.decode()
        except UnicodeDecodeError:
            self._malformed += 1
            return None
        if self._codec not in ("ass", "ssa"):
            return (text, UNKNOWN) if text.strip() else None
        fields = text.split(",", 8)  # order, layer, style, name, three margins, effect, text
        if len(fields) < 9:
            self._malformed += 1
            return None
        return re.sub(r"\\[Nnh]", " ", fields[8]), fields[3].strip() or UNKNOWN

    def finished(self, origin: Fraction) -> tuple[tuple[Turn, ...], str | None]:
        """The turns in stream time, second 0 being `origin` of the container's clock, and what was wrong, or None."""
        if self._left < 0:
            return (), f"embedded subtitles left out: more than limits.max_subtitle_bytes = {self._limit}"
        turns = (Turn(max(t.start - origin, Fraction(0)), t.end - origin, t.text, t.speaker) for t in self._turns)
        problem = f"{self._malformed} malformed embedded subtitles left out" if self._malformed else None
        return tuple(t for t in turns if t.end > 0), problem


def by_segment(
    turns: Iterable[Turn], segment: Fraction, ends: Sequence[Fraction], max_bytes: int
) -> list[tuple[Subtitle, ...]]:
    """For each segment the turns that overlap it, by start; segment i spans i * `segment` to `ends[i]`, in seconds.

    RefusedError if the turns overlap so many segments that their copies exceed a few times `max_bytes`.
    """
    found: list[list[Subtitle]] = [[] for _ in ends]
    left = COPIES * max_bytes
    for turn in sorted(turns, key=lambda t: (t.start, t.end)):
        subtitle = Subtitle(
            start_s=round(float(turn.start), 6), end_s=round(float(turn.end), 6), text=turn.text, speaker=turn.speaker
        )
        cost = len(turn.text) + len(turn.speaker) + TURN_BYTES
        for index in range(int(turn.start // segment), len(ends)):
            if index * segment >= turn.end:
                break
            if turn.start < ends[index]:
                left -= cost
                found[index].append(subtitle)
            if left < 0:
                raise RefusedError("subtitles left out: their turns overlap too many segments")
    return [tuple(subtitles) for subtitles in found]
