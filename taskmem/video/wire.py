"""Messages between segmentation and its decoding worker: a JSON object and raw bytes, their lengths before them."""

import json
import socket
import struct
from collections.abc import Sequence
from typing import Any

MAX_MESSAGE_BYTES = 1 << 30  # what the reader holds at once; a clip is a few megabytes

_LENGTHS = struct.Struct(">II")


class ClosedError(Exception):
    """The other side is gone, or sent what is no message."""


class Channel:
    """One end of a connected Unix stream socket; blocks for at most the socket's own timeout (TimeoutError)."""

    def __init__(self, end: socket.socket):
        self._end = end

    def send(self, message: dict[str, Any], data: bytes = b"", descriptors: Sequence[int] = ()) -> None:
        """Send one message; copies of the open `descriptors` go with it. ClosedError if nobody listens."""
        text = json.dumps(message).encode()
        lengths = _LENGTHS.pack(len(text), len(data))
        try:
            sent = socket.send_fds(self._end, [lengths], descriptors) if descriptors else 0
            self._end.sendall(lengths[sent:] + text)
            self._end.sendall(data)
        except ConnectionError as error:
            raise ClosedError(str(error)) from None

    def receive(self) -> tuple[dict[str, Any], bytes]:
        """The next message and its bytes; descriptors that came with it are dropped. ClosedError at the end."""
        return self._read(self._exactly(_LENGTHS.size))

    def receive_descriptor(self) -> tuple[dict[str, Any], int]:
        """The next message and the one descriptor that came with it, which the caller closes."""
        try:
            start, descriptors, *_ = socket.recv_fds(self._end, _LENGTHS.size, 1)
        except ConnectionError as error:
            raise ClosedError(str(error)) from None
        if len(descriptors) != 1:
            raise ClosedError("closed, or a message without its descriptor")
        message, _ = self._read(start + self._exactly(_LENGTHS.size - len(start)))
        return message, descriptors[0]

    def _read(self, lengths: bytes) -> tuple[dict[str, Any], bytes]:
        text, data = _LENGTHS.unpack(lengths)
        if text + data > MAX_MESSAGE_BYTES:
            raise ClosedError(f"a message of {text + data} bytes, more than {MAX_MESSAGE_BYTES}")
        try:
            message: dict[str, Any] = json.loads(self._exactly(text))
        except ValueError as error:
            raise ClosedError(f"not a message ({error})") from None
        return message, self._exactly(data)

    def _exactly(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            try:
                part = self._end.recv(min(count - len(parts), 1 << 20))
            except ConnectionError as error:
                raise ClosedError(str(error)) from None
            if not part:
                raise ClosedError("closed")
            parts += part
        return bytes(parts)

    def close(self) -> None:
        """Close this end; the other side sees it."""
        self._end.close()
