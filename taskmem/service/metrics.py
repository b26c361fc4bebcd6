"""What every service counts, and how Prometheus reads it."""

from typing import get_args

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, generate_latest
from starlette.responses import Response

from taskmem.service.refused import Reason


class Refusals:
    """taskmem_refusals_total{service, reason}; every reason is there from the start."""

    def __init__(self, service: str, registry: CollectorRegistry) -> None:
        counter = Counter(
            "taskmem_refusals", "Requests refused, by the client's mistake.", ("service", "reason"), registry=registry
        )
        self._by_reason = {reason: counter.labels(service, reason) for reason in get_args(Reason)}

    def count(self, reason: Reason) -> None:
        """One more."""
        self._by_reason[reason].inc()


def exposition(registry: CollectorRegistry) -> Response:
    """The reply to GET /metrics."""
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
