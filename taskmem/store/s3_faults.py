"""What can come of a request to S3, without boto3."""

# ruff: noqa: N818 - these are outcomes a caller decides on, named after what happened.

from taskmem.errors import UserError
from taskmem.store.protocol import StoreFault


class Refusal(UserError):
    """The server did not do it, with S3's `code`; if `retried`, an earlier attempt may have done it unheard."""

    def __init__(self, where: str, code: str, retried: bool) -> None:
        super().__init__(where, code, retried)
        self.where, self.code, self.retried = where, code, retried

    def __str__(self) -> str:
        return f"{self.where}: the server refuses ({self.code}); check the bucket's settings"


class NoAnswer(UserError):
    """Every attempt failed or went unanswered; a write may have taken place."""


class OutcomeUnknown(StoreFault, UserError):
    """A write may or may not have taken place: its answer got lost for the reason given, and nothing tells any more."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.key}: whether it was written is unknown ({self.reason}); look at it and run again"
