"""Feedback: the event log of a deployment, and the recent questions collected from it."""

from taskmem.feedback.collection import Collection, Watermark, read_collection, read_watermark, write_collection
from taskmem.feedback.collector import collect, to_question
from taskmem.feedback.log import EventConflictError, EventLog

__all__ = [
    "Collection",
    "EventConflictError",
    "EventLog",
    "Watermark",
    "collect",
    "read_collection",
    "read_watermark",
    "to_question",
    "write_collection",
]
