"""Looks into every clip before the policy's server does: what would eat its memory or crash its decoder ends here.

The server decodes what it is sent whole, in the process that serves everybody.
"""

import asyncio
import base64
import binascii
import re
import struct
from collections import OrderedDict
from collections.abc import Sequence

from taskmem.config import VideoSettings
from taskmem.files import sha256_bytes
from taskmem.service import Refused
from taskmem.video.frames import Whole, in_memory
from taskmem.video.isolation import DecodingWorker
from taskmem.video.probe import NotYetError, RefusedError
from taskmem.video.sample import Grid

PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
HEAD = re.compile(r"data:video/(mp4|jpeg);base64,")
ROUNDED = 64  # pixels
REMEMBERED = 20_000  # clips that are good; those of a window come again and again


class Clips:
    """Checks clips in `decoders` processes, each for `seconds` at most; for one event loop.

    A request may show `window` clips. Each is an mp4 that is one segment as the profile samples it, or its frames as PNGs.
    """

    def __init__(self, settings: VideoSettings, window: int, decoders: int, seconds: float) -> None:
        # frames that are far too large are refused by the header, before one is decoded; codecs round sides up
        limits = settings.limits.model_copy(update={"max_pixels": (settings.longest_side + ROUNDED) ** 2})
        self._settings = settings.model_copy(update={"limits": limits})
        self._window, self._seconds = window, seconds
        self._frames = Grid.of(settings).per_segment
        self._workers = [DecodingWorker() for _ in range(decoders)]
        self._free: asyncio.LifoQueue[DecodingWorker] = asyncio.LifoQueue()
        for worker in self._workers:
            self._free.put_nowait(worker)
        self._good: OrderedDict[str, None] = OrderedDict()

    async def check(self, urls: Sequence[str]) -> None:
        """Refused 400 if one of a request's clips is none, 503 if it could not be looked at."""
        if len(urls) > self._window:
            raise _invalid(f"{len(urls)} clips, a window has {self._window}")
        for number, url in enumerate(urls):
            head = HEAD.match(url)
            if head is None:
                raise _invalid(f"clip {number}: give it as data:video/mp4;base64,...")
            if head[1] == "mp4":
                await self._mp4(_decoded(url[head.end() :], number), number)
            else:
                self._pictures(url[head.end() :].split(","), number)

    async def stop(self) -> None:
        """End the processes."""
        for worker in self._workers:
            await asyncio.to_thread(worker.stop)

    async def _mp4(self, data: bytes, number: int) -> None:
        digest = sha256_bytes(data)
        if digest in self._good:
            self._good.move_to_end(digest)
            return
        try:
            whole = await self._whole(data)
        except NotYetError as error:
            what = f"clip {number}: could not be looked at ({error}); try again"
            raise Refused(503, what, code="clips", retry_after=5) from None
        except RefusedError as error:
            raise _invalid(f"clip {number}: {error}") from None
        if whole.frames > self._frames:
            raise _invalid(f"clip {number}: {whole.frames} frames, a segment has {self._frames}")
        self._size(whole.width, whole.height, number)
        self._good[digest] = None
        if len(self._good) > REMEMBERED:
            self._good.popitem(last=False)

    async def _whole(self, data: bytes) -> Whole:
        worker = await self._free.get()
        decoding = asyncio.create_task(asyncio.to_thread(_look, worker, data, self._settings))
        late = asyncio.get_running_loop().call_later(self._seconds, worker.interrupt)

        def ended(task: "asyncio.Task[Whole]") -> None:
            late.cancel()
            self._free.put_nowait(worker)
            # who asked may be gone
            if not task.cancelled():
                task.exception()

        decoding.add_done_callback(ended)
        return await asyncio.shield(decoding)

    def _pictures(self, pictures: Sequence[str], number: int) -> None:
        if len(pictures) > self._frames:
            raise _invalid(f"clip {number}: {len(pictures)} frames, a segment has {self._frames}")
        for picture in pictures:
            # the head is enough: how large a PNG becomes is said there, and nowhere else
            head = _decoded(picture[:44], number)
            if not head.startswith(PNG) or len(head) < 24:
                raise _invalid(f"clip {number}: frames are sent as PNG")
            width, height = struct.unpack(">II", head[16:24])
            self._size(width, height, number)

    def _size(self, width: int, height: int, number: int) -> None:
        most = self._settings.longest_side
        if max(width, height) > most:
            raise _invalid(f"clip {number}: frames of {width} x {height} pixels, {most} at most are seen")


def _look(worker: DecodingWorker, data: bytes, settings: VideoSettings) -> Whole:
    with in_memory(data) as descriptor:
        return worker.whole(descriptor, settings)


def _decoded(text: str, number: int) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise _invalid(f"clip {number}: not base64") from None


def _invalid(what: str) -> Refused:
    return Refused(400, f"messages: {what}", "invalid", param="messages")
