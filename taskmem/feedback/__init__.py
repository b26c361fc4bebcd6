"""Feedback: the log of a deployment or its parts in an object store, and the recent questions collected from them."""

from taskmem.feedback.collection import (
    Collection,
    PartsWatermark,
    Watermark,
    parse_watermark,
    read_collection,
    read_watermark,
    rests_on_erased,
    write_collection,
)
from taskmem.feedback.collector import collect, collect_folder, collect_parts, collect_store
from taskmem.feedback.gather import to_question
from taskmem.feedback.log import EventConflictError, EventLog, log_path
from taskmem.feedback.parts import FeedbackParts

__all__ = [
    "Collection",
    "EventConflictError",
    "EventLog",
    "FeedbackParts",
    "PartsWatermark",
    "Watermark",
    "collect",
    "collect_folder",
    "collect_parts",
    "collect_store",
    "log_path",
    "parse_watermark",
    "read_collection",
    "read_watermark",
    "rests_on_erased",
    "to_question",
    "write_collection",
]
