"""Any folder of videos to 10-second segments."""

from kfp.dsl import Dataset, Input, Metrics, Output

from components.base import component


@component
def video_segmentation(
    videos: Input[Dataset],
    folder: str,
    profile: str,
    segments: Output[Dataset],
    metrics: Output[Metrics],
) -> None:
    """Cut every video below `folder` of `videos` ("" for all of it) into segments.

    Writes segments.jsonl, clips/<stream>/<index>.mp4 and refused.jsonl (file, reason): a damaged video is listed, not fatal.
    """
    from taskmem.entry import video_segmentation as stage

    for name, value in stage(videos.path, folder, profile, segments.path).items():
        metrics.log_metric(name, value)
