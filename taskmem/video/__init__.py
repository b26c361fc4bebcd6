"""Video in, segments out: any container PyAV reads is cut, sampled and written as the clips the policy sees.

`segment_videos` is in `taskmem.video.segment`, `read_clip` in `taskmem.video.frames`; this package imports neither.
"""
