"""video_segmentation: any folder of videos in, segments out."""

from pathlib import Path

from taskmem.config import Profile
from taskmem.progress import Progress, silent
from taskmem.video.segment import SegmentationSummary, segment_videos


def segmentation(videos: Path, profile: Profile, out: Path, progress: Progress = silent) -> SegmentationSummary:
    """Cut every video of a folder; see `taskmem.video.segment.segment_videos`. Progress counts streams."""
    started: list[str] = []

    def seen(stream: str, seconds_done: float, seconds_total: float | None) -> None:
        if not started or started[-1] != stream:
            started.append(stream)
            progress(len(started), max(len(started), total))

    total = sum(1 for path in videos.rglob("*") if path.is_file()) if videos.is_dir() else 1
    return segment_videos(videos, out, profile.video, seen)
