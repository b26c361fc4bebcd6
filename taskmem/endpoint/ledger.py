"""The ledger: one line for every call that a server may have counted, and for every answer from the cache."""

import fcntl
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, Self

from taskmem.endpoint.purse import NOTHING, Charge
from taskmem.errors import UserError
from taskmem.files import fsync_directory
from taskmem.records import Index, Record, Seconds, Sha256, dump_record, iter_records

LEDGER = "run.jsonl"
SENT = "sent.jsonl"
Outcome = Literal["answered", "cached", "invalid", "status", "timeout", "cut", "unreached", "lost"]


class Call(Record):
    """One call. `charged_tokens` and `cost` are the server's count where it gave one, else the most it can be.

    answered: used, and in the cache. cached: nothing was sent. invalid: paid for, but no answer. status: an HTTP error, which
    costs nothing. timeout, cut: sent, no reply. unreached: never sent. lost: this process died or was interrupted meanwhile.
    """

    id: str
    role: str
    model: str
    request: Sha256
    outcome: Outcome
    status: int | None
    prompt_tokens: Index | None
    completion_tokens: Index | None
    charged_tokens: Index
    cost: float
    cached: bool
    latency_s: Seconds
    time: float

    @property
    def charge(self) -> Charge:
        """What the call takes from the budget."""
        return Charge.of(self.charged_tokens, self.cost)

    @property
    def counted(self) -> bool:
        """Whether the server may have counted it."""
        return self.outcome not in ("cached", "unreached")


class Sent(Record):
    """A call about to be sent, and the most it can cost: what is left of it if the process dies."""

    id: str
    role: str
    model: str
    request: Sha256
    tokens: Index
    cost: float
    time: float


class Calls:
    """What is done with calls that are sent and answered: this notes nothing. `spent` is what had been when it was opened."""

    spent = NOTHING

    def send(self, role: str, model: str, request: str, most: Charge) -> Sent:
        """Note a call that is about to be sent and may cost `most`."""
        sent = Sent(
            id=uuid.uuid4().hex,
            role=role,
            model=model,
            request=request,
            tokens=most.tokens,
            cost=most.money,
            time=time.time(),
        )
        self._note_sent(sent)
        return sent

    def settle(
        self,
        sent: Sent,
        outcome: Outcome,
        charge: Charge,
        *,
        status: int | None = None,
        counts: tuple[int, int] | None = None,
    ) -> Call:
        """Note what became of a call; `counts` are the server's prompt and completion tokens."""
        now = time.time()
        call = Call(
            id=sent.id,
            role=sent.role,
            model=sent.model,
            request=sent.request,
            outcome=outcome,
            status=status,
            prompt_tokens=counts[0] if counts else None,
            completion_tokens=counts[1] if counts else None,
            charged_tokens=charge.tokens,
            cost=charge.money,
            cached=outcome == "cached",
            latency_s=round(max(0.0, now - sent.time), 6),
            time=now,
        )
        self._note_call(call)
        return call

    def cached(self, role: str, model: str, request: str) -> None:
        """Note an answer from the cache: nothing was sent."""
        hit = Sent(id=uuid.uuid4().hex, role=role, model=model, request=request, tokens=0, cost=0.0, time=time.time())
        self.settle(hit, "cached", NOTHING)

    def close(self) -> None:
        """Nothing more is noted."""

    def _note_sent(self, sent: Sent) -> None:
        """A call is about to be sent."""

    def _note_call(self, call: Call) -> None:
        """A call has ended."""


class Told(Calls):
    """Calls of a service, which counts them as they end and writes nothing down; thread-safe if `tell` is."""

    def __init__(self, tell: Callable[[Call], None]) -> None:
        self._tell = tell

    def _note_call(self, call: Call) -> None:
        self._tell(call)


class _Lines:
    """A JSON Lines file that grows by whole, durable lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._lock = threading.Lock()
        self._size = self._whole_lines()

    def _whole_lines(self) -> int:
        """Cut off a line that a killed writer left half; the size after it."""
        data = self._path.read_bytes()
        size = data.rfind(b"\n") + 1
        if size != len(data):
            os.ftruncate(self._file, size)
        return size

    def append(self, record: Record, durable: bool = True) -> None:
        """Add one line, `durable` also through a power cut; UserError, and the file is as before, if it cannot be written."""
        line = (dump_record(record) + "\n").encode()
        with self._lock:
            try:
                if os.pwrite(self._file, line, self._size) != len(line):
                    raise OSError(0, "no space left")
                if durable:
                    os.fsync(self._file)
            except OSError as error:
                os.ftruncate(self._file, self._size)
                raise UserError(f"{self._path}: cannot be written ({error.strerror}); make room, run again") from None
            self._size += len(line)

    def clear(self) -> None:
        with self._lock:
            os.ftruncate(self._file, 0)
            os.fsync(self._file)
            self._size = 0

    def lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{self._path}: another process is calling with this folder; wait for it, or give another folder"
            ) from None

    def close(self) -> None:
        os.close(self._file)


class Ledger(Calls):
    """`folder`/run.jsonl, append-only, and beside it the calls that are on their way.

    A call is noted before it is sent. One that a killed process left there enters the ledger as `lost`, at the most it can
    have cost, when the folder is next opened: no call that a server counted is missing. One process at a time; thread-safe.
    """

    def __init__(self, folder: Path) -> None:
        """Open the ledger, `spent` with all it holds; UserError if it cannot be read or another process has it."""
        folder.mkdir(parents=True, exist_ok=True)
        self._sent = _Lines(folder / SENT)
        try:
            self._sent.lock()
            self._calls = _Lines(folder / LEDGER)
            fsync_directory(folder)
            self.spent = self._take_over(folder)
        except BaseException:
            self._sent.close()
            raise

    def _take_over(self, folder: Path) -> Charge:
        spent, known = NOTHING, set()
        for call in read_ledger(folder):
            known.add(call.id)
            spent += call.charge
        for sent in iter_records(folder / SENT, Sent):
            if sent.id not in known:
                spent += self.settle(sent, "lost", Charge.of(sent.tokens, sent.cost)).charge
        self._sent.clear()
        return spent

    def _note_sent(self, sent: Sent) -> None:
        self._sent.append(sent)

    def _note_call(self, call: Call) -> None:
        self._calls.append(call, durable=not call.cached)

    def close(self) -> None:
        """Give the folder free."""
        self._calls.close()
        self._sent.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_ledger(folder: Path) -> Iterator[Call]:
    """The calls of `folder`/run.jsonl, oldest first; UserError as `iter_records`."""
    return iter_records(folder / LEDGER, Call)
