"""What is known of a request while it is served; the log line is made of it."""

from dataclasses import dataclass

from starlette.requests import Request


@dataclass
class Trace:
    """`id` is ours and unique; `environment` is the caller's, None before it has shown a token.

    `adapter` is name@version or none and `adapter_digest` the SHA-256 of its weights, once it is chosen. `status` is that of the
    reply; 499 where the client went away before it had one.
    """

    id: str
    route: str | None = None  # its template, None where there is none
    environment: str | None = None
    adapter: str | None = None
    adapter_digest: str | None = None
    status: int | None = None
    whole: bool = False  # the reply's end was sent


def trace_of(request: Request) -> Trace:
    """The request's trace, which a handler may complete."""
    trace: Trace = request.state.trace
    return trace
