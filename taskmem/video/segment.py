"""Any folder of videos to segments: one pass over each video, whole streams resumable, what was not used listed."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from taskmem.config import VideoSettings
from taskmem.errors import UserError
from taskmem.files import atomic_write, canonical_json, sha256_bytes, sha256_file
from taskmem.records import Refusal, Segment, dump_record, parse_line, write_records
from taskmem.video.cut import Clip
from taskmem.video.decode import End
from taskmem.video.isolation import DecodingWorker
from taskmem.video.probe import RefusedError, digest, regular_file
from taskmem.video.sample import Grid, exact
from taskmem.video.scan import Found, find_videos, printable
from taskmem.video.subtitles import Sidecar, Turn, by_segment, read_sidecar

Progress = Callable[[str, float, float | None], None]
"""Called with the stream, the seconds of it that are done, and its length in seconds if its header tells."""

MARKERS = ".done"
LAYOUT = 1  # raised when the same source and settings would give other clips


@dataclass(frozen=True)
class SegmentationSummary:
    """Counts: files tried, streams with a segment, segments, lines of refused.jsonl, files taken over from before."""

    videos: int
    streams: int
    segments: int
    refused: int
    reused: int


@dataclass(frozen=True)
class _Result:
    """What one file gave; `lasting` is False where the same bytes may give another result next time."""

    segments: tuple[Segment, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    lasting: bool = True


@dataclass(frozen=True)
class _Written:
    path: str
    sha256: str
    width: int
    height: int
    end: Fraction


@dataclass
class _Job:
    """One video on its way through: where it comes from, where it goes, and how."""

    found: Found
    out: Path
    settings: VideoSettings
    progress: Progress | None
    worker: DecodingWorker
    clips: list[_Written] = field(default_factory=list)

    @property
    def marker(self) -> Path:
        """What says that an earlier run finished the stream."""
        return self.out / MARKERS / f"{self.found.stream}.json"


def segment_videos(
    videos: Path,
    out: Path,
    settings: VideoSettings,
    progress: Progress | None = None,
    worker: DecodingWorker | None = None,
) -> SegmentationSummary:
    """Cut every video below the folder `videos` (or the one file) into segments under `out`.

    Writes `out/clips/<stream>/<index>.mp4`, then `out/segments.jsonl` (Segment, by stream and index) and
    `out/refused.jsonl` (Refusal: files not used, cut at a limit or damaged, and faulty subtitles). A clip shows, at
    `settings.fps`, the frame in the middle of each sampling interval (METHOD section 1). The same files and settings
    give the same bytes. A finished stream leaves a marker in `out/.done`; a later run takes it over if the source, its
    subtitle file and the settings are unchanged and its clips are whole. `progress` is called after each segment; the
    next one waits for it.

    Decoding runs in a worker process: in `worker`, which calls may share one after another, or in one for this call. A
    video that crashes it, needs too much memory or makes no progress is refused as a whole, since nothing that a
    crashed decoder made can be trusted; the others go on in a fresh worker. Where the file itself is at fault the
    refusal is kept for later runs; a stalled or killed one is tried again.

    Raises UserError if `videos` does not exist, holds no file that may be a video, or holds `out`.
    """
    if out.resolve().is_relative_to(videos.resolve()):
        raise UserError(f"{out}: lies inside the videos; give --out another folder")
    found, refusals = find_videos(videos)
    if not found and not refusals:
        raise UserError(f"{videos}: holds no videos; put some there or give another folder")
    _clean(out, {f.stream for f in found})
    segments: list[Segment] = []
    reused = 0
    with nullcontext(worker) if worker else DecodingWorker() as decoder:
        for video in found:
            result, kept = _one(_Job(video, out, settings, progress, decoder))
            segments += result.segments
            refusals += result.refusals
            reused += kept
    segments.sort(key=lambda s: (s.stream, s.index))
    refusals.sort(key=lambda r: (r.file, r.reason))
    write_records(out / "refused.jsonl", refusals)
    write_records(out / "segments.jsonl", segments)
    streams = len({s.stream for s in segments})
    return SegmentationSummary(len(found), streams, len(segments), len(refusals), reused)


def _clean(out: Path, streams: set[str]) -> None:
    """Remove what an interrupted write left, and finished streams whose video is no longer there."""
    for folder in (out, out / MARKERS):
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink()
    for marker in (out / MARKERS).glob("*.json"):
        if marker.stem not in streams:
            shutil.rmtree(out / "clips" / marker.stem, ignore_errors=True)
            marker.unlink()


def _one(job: _Job) -> tuple[_Result, bool]:
    """One file's result, and whether it was taken over from an earlier run."""
    key = None
    try:
        with regular_file(job.found.path, job.settings.limits.max_bytes) as descriptor:
            sidecar, complaint = _read_sidecar(job)
            key = _key(job, digest(descriptor), sidecar, complaint)
            earlier = _earlier(job.marker, key, job.out)
            if earlier is not None:
                return earlier, True
            _discard(job)
            result = _segment(job, descriptor, sidecar, complaint)
    except RefusedError as refused:
        _discard(job)
        result = _Result(refusals=(_refusal(job, str(refused)),), lasting=refused.lasting)
    if key is not None and result.lasting:
        _mark(job.marker, key, result)
    return result, False


def _discard(job: _Job) -> None:
    job.clips.clear()
    job.marker.unlink(missing_ok=True)
    shutil.rmtree(job.out / "clips" / job.found.stream, ignore_errors=True)


def _refusal(job: _Job, words: str) -> Refusal:
    return Refusal(file=job.found.name, reason=words)


def _read_sidecar(job: _Job) -> tuple[Sidecar | None, Refusal | None]:
    path = job.found.sidecar
    if path is None:
        return None, None
    name = (Path(job.found.name).parent / printable(path.name)).as_posix()
    try:
        sidecar = read_sidecar(path, job.settings.limits.max_subtitle_bytes)
    except RefusedError as refused:
        return Sidecar((), "", None), Refusal(file=name, reason=str(refused))
    return sidecar, Refusal(file=name, reason=sidecar.problem) if sidecar.problem else None


def _key(job: _Job, source: str, sidecar: Sidecar | None, complaint: Refusal | None) -> str:
    """Digest of everything that determines the result."""
    subtitles = [sidecar.sha256 if sidecar else None, complaint.model_dump() if complaint else None]
    settings = job.settings.model_dump(mode="json")
    return sha256_bytes(canonical_json([LAYOUT, job.found.name, job.found.stream, source, subtitles, settings]))


def _earlier(marker: Path, key: str, out: Path) -> _Result | None:
    """The result an earlier run left, if it is for the same key and every clip is still there, byte for byte."""
    try:
        left = json.loads(marker.read_text(encoding="utf-8"))
        if left["key"] != key:
            return None
        segments = tuple(parse_line(json.dumps(s), Segment, str(marker)) for s in left["segments"])
        refusals = tuple(parse_line(json.dumps(r), Refusal, str(marker)) for r in left["refusals"])
        whole = all(sha256_file(out / s.clip) == s.sha256 for s in segments)
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return None
    return _Result(segments, refusals) if whole else None


def _mark(marker: Path, key: str, result: _Result) -> None:
    lines = {"segments": result.segments, "refusals": result.refusals}
    dumped = {name: [json.loads(dump_record(r)) for r in records] for name, records in lines.items()}
    atomic_write(marker, canonical_json({"key": key, **dumped}) + "\n")


def _segment(job: _Job, descriptor: int, sidecar: Sidecar | None, complaint: Refusal | None) -> _Result:
    """Have one video decoded and cut; RefusedError if nothing of it can be used."""

    def take(clip: Clip) -> None:
        if clip.index == 0:  # the first time, or the worker that made the earlier ones crashed
            _discard(job)
        path = f"clips/{job.found.stream}/{clip.index:06d}.mp4"
        atomic_write(job.out / path, clip.data)
        job.clips.append(_Written(path, sha256_bytes(clip.data), clip.width, clip.height, clip.end))
        if job.progress is not None:
            job.progress(job.found.stream, float(clip.end), clip.total)

    cut = job.worker.cut(descriptor, job.settings, take)
    if not job.clips:
        raise RefusedError(f"{cut.end.cut}; no whole segment before it" if cut.end.cut else "no frame could be decoded")
    turns = cut.turns if sidecar is None else sidecar.turns
    words = [_ending(cut.end, job.clips), cut.problem if sidecar is None else None]
    segments, refused = _segments(job, Grid.of(job.settings), turns)
    notes = [_refusal(job, w) for w in (*words, refused) if w]
    return _Result(segments, tuple(notes + ([complaint] if complaint else [])))


def _ending(end: End, clips: list[_Written]) -> str | None:
    parts = []
    if end.cut:
        kept = f"kept the first {float(clips[-1].end):g} s, segments: {len(clips)}"
        parts.append(f"cut at {float(end.time):g} s: {end.cut}; {kept}")
    if end.note:
        parts.append(end.note)
    return "; ".join(parts) or None


def _segments(job: _Job, grid: Grid, turns: tuple[Turn, ...]) -> tuple[tuple[Segment, ...], str | None]:
    """The records of `job.clips`, and why they have no subtitles, if they were refused."""
    refused = None
    ends = [clip.end for clip in job.clips]
    try:
        subtitles = by_segment(turns, grid.segment, ends, job.settings.limits.max_subtitle_bytes)
    except RefusedError as error:
        refused, subtitles = str(error), [() for _ in ends]
    return tuple(_records(job, grid, subtitles)), refused


def _records(job: _Job, grid: Grid, subtitles: list) -> Iterator[Segment]:
    for index, (clip, turns) in enumerate(zip(job.clips, subtitles, strict=True)):
        yield Segment(
            stream=job.found.stream,
            index=index,
            start_s=round(float(index * grid.segment), 6),
            end_s=round(float(clip.end), 6),
            source=job.found.name,
            clip=clip.path,
            fps=float(exact(job.settings.fps)),
            width=clip.width,
            height=clip.height,
            subtitles=turns,
            sha256=clip.sha256,
        )
