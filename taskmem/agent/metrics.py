"""What the agent counts. Names are fixed, so that alerts can be written; labels are bounded."""

from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from taskmem.endpoint.ledger import Call
from taskmem.records import FeedbackEvent
from taskmem.service import Refusals

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
TOKENS = (5, 10, 20, 40, 60, 80, 100, 150, 200, 300, 500)


@dataclass
class Metrics:
    """Everything in `registry` may be read by whoever reaches the port: nothing in it names an environment."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        own = self.registry
        self.refusals = Refusals("agent", own)
        self._segments = Counter("taskmem_segments", "Segments that came.", ("result",), registry=own)
        for result in ("written", "repeated", "refused"):
            self._segments.labels(result)
        self._memory_tokens = Histogram(
            "taskmem_memory_tokens", "Tokens of a memory that was written.", registry=own, buckets=TOKENS
        )
        self._segment_seconds = Histogram(
            "taskmem_segment_seconds", "From a segment's arrival to its stored memory.", registry=own, buckets=SECONDS
        )
        self._questions = Counter("taskmem_questions", "Questions asked.", ("outcome",), registry=own)
        for outcome in ("answered", "insufficient"):
            self._questions.labels(outcome)
        self._question_seconds = Histogram(
            "taskmem_question_seconds", "From a question's arrival to its stored answer.", registry=own, buckets=SECONDS
        )
        self._feedback = Counter("taskmem_feedback", "Feedback events that are new.", ("outcome",), registry=own)
        for outcome in ("correct", "incorrect", "unknown"):
            self._feedback.labels(outcome)
        self.unshipped = Gauge("taskmem_feedback_unshipped", "Events that only the database has.", registry=own)
        self.lag = Gauge("taskmem_feedback_lag_seconds", "How long the oldest of these has been waiting.", registry=own)
        self._calls = Counter("taskmem_calls", "Calls of models.", ("role", "outcome"), registry=own)
        self._cost = Counter("taskmem_call_cost", "What they cost, in the profile's currency.", ("role",), registry=own)

    def wrote(self, seconds: float, tokens: int) -> None:
        """A memory was written."""
        self._segments.labels("written").inc()
        self._segment_seconds.observe(seconds)
        self._memory_tokens.observe(tokens)

    def repeated(self) -> None:
        """A segment came again."""
        self._segments.labels("repeated").inc()

    def refused_segment(self) -> None:
        """A segment was not taken."""
        self._segments.labels("refused").inc()

    def answered(self, outcome: str, seconds: float) -> None:
        """A question was answered for the first time."""
        self._questions.labels(outcome).inc()
        self._question_seconds.observe(seconds)

    def said(self, event: FeedbackEvent) -> None:
        """New feedback came."""
        self._feedback.labels(event.outcome).inc()

    def called(self, call: Call) -> None:
        """A call of a model has ended."""
        self._calls.labels(call.role, call.outcome).inc()
        self._cost.labels(call.role).inc(call.cost)
