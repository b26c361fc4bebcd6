"""The agent in this process."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from taskmem.agent.answering import Answerer, visible
from taskmem.agent.protocol import Answer, Served
from taskmem.errors import UserError
from taskmem.feedback import EventConflictError, EventLog, log_path
from taskmem.policy.protocols import Policy
from taskmem.policy.stream import Watcher
from taskmem.records import FeedbackEvent, Memory, Question, Segment

OPEN_LOGS = 64  # of thousands of environments a few are busy at a time; an open log holds two descriptors


class LocalAgent:
    """`Agent` around a policy and an answerer; call it from one thread at a time.

    Feedback goes to `events`/<environment>.jsonl, a log for each environment. What it remembers lasts as long as the object,
    feedback for good.
    """

    def __init__(self, policy: Policy, answerer: Answerer, window: int, seed: int, events: Path) -> None:
        self._policy = policy
        self._answerer = answerer
        self._watcher = Watcher(policy, window, seed)
        self._events = events
        self._memories: dict[str, list[Memory]] = {}
        self._logs: dict[str, EventLog] = {}  # the longest unused first
        self._started = False

    def __enter__(self) -> Self:
        try:
            self._events.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self._events}: cannot hold feedback logs ({error.strerror}); give a writable folder"
            ) from None
        self._started = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._started = False
        while self._logs:
            self._logs.popitem()[1].close()

    def ready(self) -> Served:
        """See `Agent.ready`."""
        if not self._started:
            raise UserError(f"the agent of {self._events}: not started; use it inside its `with` block")
        return Served(self._policy.digest, self._policy.adapter)

    def remember(self, segments: Sequence[Segment]) -> list[Memory]:
        """See `Agent.remember`."""
        self.ready()
        memories = [memory for memory, _ in self._watcher.write(segments)]
        for memory in memories:
            self._memories.setdefault(memory.stream, []).append(memory)
        return memories

    def answer(self, question: Question) -> Answer:
        """See `Agent.answer`; the question's true answer, should it carry one, is never shown to the answerer."""
        self.ready()
        read = visible(self._memories.get(question.stream, []), question)
        text = self._answerer.answer(question.without_answer(), read)
        return Answer(text, tuple(f"{m.stream}:{m.index}" for m in read))

    def feedback(self, event: FeedbackEvent) -> bool:
        """See `Agent.feedback`."""
        self.ready()
        log = self._log(event.environment)
        try:
            return log.append(event)
        except EventConflictError:
            raise
        except BaseException:
            # a failed write closes a log; opened again by the next event, it is mended
            self._logs.pop(event.environment).close()
            raise

    def _log(self, environment: str) -> EventLog:
        log = self._logs.pop(environment, None) or EventLog(log_path(self._events, environment))
        self._logs[environment] = log
        if len(self._logs) > OPEN_LOGS:
            self._logs.pop(next(iter(self._logs))).close()
        return log
