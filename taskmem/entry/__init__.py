"""What a component calls: paths and JSON in, files and a few numbers out.

One function per component, so that a component's body is a line or two. Here paths become Paths and the profile's JSON becomes a
Profile; progress goes to the log as `::progress DONE/TOTAL`, which the local runner shows; a user's mistake ends the process with
one line and exit code 2.
"""

from taskmem.entry.common import Numbers, entry
from taskmem.entry.night import (
    TRUNK_CACHE,
    feedback_collection,
    gate,
    lineage_record,
    notify,
    phase_two_dpo,
    preference_mining,
    promotion,
)
from taskmem.entry.policy import (
    choose_tasks,
    deployment,
    judge_scoring,
    phase_one_gspo,
    results_report,
    rollout_cache,
    streaming_eval,
    video_segmentation,
    world_render,
)

__all__ = [
    "TRUNK_CACHE",
    "Numbers",
    "choose_tasks",
    "deployment",
    "entry",
    "feedback_collection",
    "gate",
    "judge_scoring",
    "lineage_record",
    "notify",
    "phase_one_gspo",
    "phase_two_dpo",
    "preference_mining",
    "promotion",
    "results_report",
    "rollout_cache",
    "streaming_eval",
    "video_segmentation",
    "world_render",
]
