"""One HTTP attempt: paid for in advance, entered in the ledger, bounded in time and size."""

import time
from dataclasses import dataclass
from typing import cast

import httpx2

from taskmem.endpoint.ledger import Calls, Outcome, Sent
from taskmem.endpoint.purse import NOTHING, Charge, Purse
from taskmem.endpoint.reply import Usage
from taskmem.roles import Price

MAX_REPLY_BYTES = 1 << 26


@dataclass(frozen=True)
class Ask:
    """What the ledger says of a request, and the most that one attempt can cost."""

    role: str
    model: str
    request: str
    most: Charge


class Metered(httpx2.BaseTransport):
    """Sends the attempts of one call through `inner`.

    Each is reserved and noted before a byte leaves. Those without an answer are settled here; one with HTTP status 200 stays
    open until `settle` says whether its reply was of use.
    """

    def __init__(self, inner: httpx2.BaseTransport, ledger: Calls, purse: Purse, ask: Ask, seconds: float) -> None:
        self._inner = inner
        self._ledger = ledger
        self._purse = purse
        self._ask = ask
        self._seconds = seconds
        self._open: Sent | None = None

    @property
    def most(self) -> Charge:
        """The most that one attempt can cost."""
        return self._ask.most

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """One attempt; UserError if the budget has no room for it, else as httpx2's transports."""
        most = self._ask.most
        self._purse.reserve(most)
        try:
            self._open = self._ledger.send(self._ask.role, self._ask.model, self._ask.request, most)
        except BaseException:
            self._purse.settle(most, NOTHING)
            raise
        try:
            response = self._exchange(request)
        except (httpx2.ConnectError, httpx2.ConnectTimeout):
            self._close("unreached", NOTHING)
            raise
        except httpx2.TimeoutException:
            self._close("timeout", most)
            raise
        except httpx2.TransportError:
            self._close("cut", most)
            raise
        except BaseException:
            self._close("lost", most)
            raise
        if response.status_code != httpx2.codes.OK:
            self._close("status", NOTHING, status=response.status_code)
        return response

    def _exchange(self, request: httpx2.Request) -> httpx2.Response:
        end = time.monotonic() + self._seconds
        response = self._inner.handle_request(request)
        body = bytearray()
        stream = cast(httpx2.SyncByteStream, response.stream)
        try:
            for chunk in stream:
                body += chunk
                if time.monotonic() > end:
                    raise httpx2.ReadTimeout("the reply dripped in too slowly", request=request)
                if len(body) > MAX_REPLY_BYTES:
                    raise httpx2.RemoteProtocolError("the reply is too large", request=request)
        finally:
            response.close()
        return httpx2.Response(response.status_code, headers=response.headers, content=bytes(body))

    def settle(self, outcome: Outcome, usage: Usage | None, price: Price) -> Charge:
        """Close the open attempt with the server's count, or at its most where it gave none; what was charged."""
        if usage is None:
            return self._close(outcome, self._ask.most, status=httpx2.codes.OK)
        counts = usage.prompt_tokens, usage.completion_tokens
        return self._close(outcome, Charge.priced(price, *counts), status=httpx2.codes.OK, counts=counts)

    def abandon(self) -> None:
        """Close an attempt that was interrupted between its reply and its use."""
        if self._open is not None:
            self._close("lost", self._ask.most)

    def _close(
        self, outcome: Outcome, charge: Charge, status: int | None = None, counts: tuple[int, int] | None = None
    ) -> Charge:
        sent, self._open = self._open, None
        if sent is None:
            raise RuntimeError("no attempt is open")
        try:
            self._ledger.settle(sent, outcome, charge, status=status, counts=counts)
        finally:
            self._purse.settle(self._ask.most, charge)
        return charge
