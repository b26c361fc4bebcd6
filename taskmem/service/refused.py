"""A request that is not served, in the shape of OpenAI's errors, which its clients know how to read."""

import math
from typing import Any, Literal

from starlette.exceptions import HTTPException

Reason = Literal["unauthenticated", "forbidden", "not_found", "too_large", "invalid", "conflict", "busy"]
"""Why a request was the client's to mend, or to try again: the label of taskmem_refusals_total."""

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Refused(HTTPException):
    """Ends a request with `status` and `message`; `reason` is None where the service is to blame, not the client.

    `code` is a word for programs, `param` the field that is wrong, `retry_after` the seconds after which to try again. It is a
    starlette HTTPException so that FastAPI lets it through wherever it is raised.
    """

    def __init__(
        self,
        status: int,
        message: str,
        reason: Reason | None = None,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        waiting = {} if retry_after is None else {"Retry-After": str(max(1, math.ceil(retry_after)))}
        super().__init__(status, message, {**(headers or {}), **waiting})
        self.message, self.reason, self.code, self.param = message, reason, code or reason, param

    @property
    def body(self) -> dict[str, Any]:
        """The reply's body."""
        return error_body(self.status_code, self.message, self.code, self.param)


def error_body(status: int, message: str, code: str | None, param: str | None = None) -> dict[str, Any]:
    """What OpenAI's API answers where it does not serve a request."""
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
