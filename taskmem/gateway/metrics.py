"""What the gateway counts. Names are fixed, so that alerts can be written; labels are bounded."""

from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from taskmem.registry import Manifest
from taskmem.registry.objects import version_number
from taskmem.service import Refusals, Trace

SHOWN = 1000  # environments that have a gauge of their own
BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
STATUSES = (200, 400, 401, 404, 405, 408, 413, 429, 499, 500, 502, 503, 504)


@dataclass
class Metrics:
    """Everything in `registry` may be read by whoever reaches the port; which environments there are is in `named` alone."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    named: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        registry = self.registry
        self.refusals = Refusals("gateway", registry)
        self.requests = Counter("taskmem_gateway_requests", "Requests below /v1.", ("status",), registry=registry)
        for status in STATUSES:
            self.requests.labels(str(status))
        self.seconds = Histogram(
            "taskmem_gateway_seconds", "From a request's head to its reply's end.", registry=registry, buckets=BUCKETS
        )
        self.in_flight = Gauge("taskmem_gateway_in_flight", "Requests with the policy's server.", registry=registry)
        self.waiting = Gauge("taskmem_gateway_waiting", "Requests that wait for a place.", registry=registry)
        self.sent_again = Counter(
            "taskmem_gateway_sent_again",
            "Requests that failed inside the policy's server and were sent again.",
            registry=registry,
        )
        self.adapter_loads = Counter("taskmem_adapter_loads", "Adapters loaded.", ("result",), registry=registry)
        for result in ("loaded", "refused", "failed"):
            self.adapter_loads.labels(result)
        self.adapters_loaded = Gauge("taskmem_adapters_loaded", "Adapters that are loaded.", registry=registry)
        self._version = Gauge(
            "taskmem_adapter_version",
            "The champion's version, 0 for no adapter.",
            ("environment",),
            registry=self.named,
        )
        self._shown: set[str] = set()

    def serves(self, environment: str, adapter: Manifest | None) -> None:
        """An environment's name was resolved; of more than 1,000 environments the rest is not shown."""
        if environment in self._shown or len(self._shown) < SHOWN:
            self._shown.add(environment)
            self._version.labels(environment).set(version_number(adapter.version) if adapter else 0)

    def done(self, trace: Trace, seconds: float) -> None:
        """A request has ended."""
        if trace.route is not None and trace.route.startswith("/v1/"):
            self.requests.labels(str(trace.status)).inc()
            if trace.status == 200 and trace.route == "/v1/chat/completions":
                self.seconds.observe(seconds)
