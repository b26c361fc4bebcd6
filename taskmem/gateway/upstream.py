"""The policy's server, vLLM with our plug-in, as the gateway needs it."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from taskmem.errors import UserError
from taskmem.gateway.settings import GatewaySettings
from taskmem.policy.exported import read_export
from taskmem.records import one_line
from taskmem.service import Refused

DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
LARGEST_ANSWER = 8 << 20  # of anything but a completion
SHOWN = 500
KEPT_SECONDS = 4.0  # vLLM closes a connection that is idle for five


@dataclass(frozen=True)
class Served:
    """What the server says of itself. `digest` is its policy's; `base` the model to ask for without adapter.

    `echo` is the name it gives that model in its replies; `adapters` are the folders of those it has loaded, by name.
    """

    digest: str
    base: str
    echo: str
    adapters: Mapping[str, str]


class PolicyServer:
    """A client of the server at `url`; close it at the end.

    Whatever the server does wrong is a Refused of 502, 503 or 504: the caller of the gateway is not to blame.
    """

    def __init__(self, url: str, settings: GatewaySettings) -> None:
        self.url = url.rstrip("/")
        self._settings = settings
        # one connection a request in flight, and some for what the gateway itself asks
        most = httpx2.Limits(max_connections=settings.in_flight + 16, keepalive_expiry=KEPT_SECONDS)
        patience = httpx2.Timeout(
            settings.reply_seconds, connect=settings.connect_seconds, pool=settings.connect_seconds
        )
        self._client = httpx2.AsyncClient(base_url=self.url, timeout=patience, limits=most, trust_env=False)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def served(self) -> Served:
        """What it serves now; Refused 503 if it does not answer, or its policy's digest is not to be had."""
        status, answer = await self._ask("GET", "/v1/models", None, self._settings.connect_seconds)
        try:
            cards = json.loads(answer)["data"] if status == 200 else []
            base = [card for card in cards if card.get("parent") is None]
            loaded = {str(card["id"]): str(card["root"]) for card in cards if card.get("parent") is not None}
            names = [str(card["id"]) for card in base]
            root = str(base[0]["root"])
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise unavailable(f"the policy's server does not list its models (HTTP {status})") from None
        # a name that is the digest holds also after the server was started again with another policy
        named = next(((found[1], name) for name in names if (found := DIGEST.fullmatch(name))), None)
        if named is None:
            named = await asyncio.to_thread(_digest_below, Path(root)), names[0]
        return Served(*named, names[0], loaded)

    async def load(self, name: str, folder: Path) -> tuple[int, str]:
        """Load an adapter: HTTP status and what the server says; Refused 503 if it does not answer."""
        ask = {"lora_name": name, "lora_path": str(folder)}
        status, answer = await self._ask("POST", "/v1/load_lora_adapter", ask, self._settings.load_seconds)
        return status, reason_in(answer)

    async def unload(self, name: str) -> tuple[int, str]:
        """Give an adapter up: HTTP status and what the server says; Refused 503 if it does not answer."""
        ask = {"lora_name": name}
        status, answer = await self._ask("POST", "/v1/unload_lora_adapter", ask, self._settings.load_seconds)
        return status, reason_in(answer)

    @asynccontextmanager
    async def chat(self, body: Mapping[str, Any], id_: str) -> AsyncIterator[httpx2.Response]:
        """A completion under way: its head is there, its body is to be read. Refused 503 if there is no connection."""
        headers = {"Content-Type": "application/json", "X-Request-Id": id_}
        content = json.dumps(body, allow_nan=False).encode()
        response = await self._sent(content, headers)
        try:
            yield response
        finally:
            await response.aclose()

    async def _sent(self, content: bytes, headers: dict[str, str]) -> httpx2.Response:
        for last in (False, True):
            request = self._client.build_request("POST", "/v1/chat/completions", content=content, headers=headers)
            try:
                return await self._client.send(request, stream=True)
            except (httpx2.ReadError, httpx2.WriteError, httpx2.RemoteProtocolError) as error:
                # a kept connection that the server closed at the same moment; nothing was passed on yet
                if last:
                    raise no_answer(error) from None
                headers = {**headers, "X-Request-Id": f"{headers['X-Request-Id']}-2"}
            except httpx2.HTTPError as error:
                raise no_answer(error) from None
        raise AssertionError("not reached")

    async def _ask(self, method: str, path: str, body: Any, seconds: float) -> tuple[int, bytes]:
        try:
            async with asyncio.timeout(seconds), self._client.stream(method, path, json=body) as response:
                return response.status_code, await whole(response, LARGEST_ANSWER)
        except TimeoutError:
            raise unavailable("the policy's server does not answer in time") from None
        except httpx2.HTTPError as error:
            raise no_answer(error) from None


async def whole(response: httpx2.Response, most: int) -> bytes:
    """A reply's body; Refused 502 if it is longer than `most` bytes or breaks off."""
    got = bytearray()
    try:
        async for piece in response.aiter_bytes():
            got += piece
            if len(got) > most:
                raise Refused(502, "the policy's server sends more than a reply can hold", code="policy_server")
    except httpx2.HTTPError as error:
        raise Refused(502, f"the policy's server broke off ({type(error).__name__})", code="policy_server") from None
    return bytes(got)


def unavailable(what: str, code: str = "policy_server") -> Refused:
    """The policy's server cannot serve now."""
    return Refused(503, f"{what}; try again", code=code, retry_after=5)


def no_answer(error: Exception) -> Refused:
    """The policy's server cannot be reached, or went away."""
    if isinstance(error, httpx2.ReadTimeout):
        return Refused(504, "the policy's server did not reply in time", code="timeout")
    return unavailable(f"the policy's server does not answer ({type(error).__name__})")


def reason_in(answer: bytes) -> str:
    """What the server says, in one line."""
    try:
        said = json.loads(answer)
        text = said["error"]["message"] if isinstance(said, dict) else said
    except (ValueError, KeyError, TypeError, RecursionError):
        text = answer.decode(errors="replace")
    return one_line(str(text))[:SHOWN]


def _digest_below(root: Path) -> str:
    try:
        return read_export(root).policy
    except (UserError, OSError) as error:
        raise unavailable(f"which policy the server runs is unknown ({one_line(str(error))})") from None
