"""Facts to pixels, pixels to mp4. Every frame is 64 x 64 RGB; a segment is ten frames at one a second."""

import random
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from taskmem.world.facts import DOOR, FIGURE, LAMPS, OBJECT, ROOM, VALUES, Facts

SIDE = 64
FRAMES = 10
FPS = 1

Frames = NDArray[np.uint8]

_FIGURE_RGB = {
    "red": (220, 30, 30),
    "blue": (40, 60, 230),
    "green": (20, 150, 30),
    "yellow": (240, 220, 30),
    "white": (245, 245, 245),
    "purple": (150, 30, 170),
}
_ROOM_RGB = {
    "kitchen": (230, 180, 140),
    "garden": (150, 220, 150),
    "office": (140, 170, 210),
    "bedroom": (230, 180, 220),
    "garage": (110, 110, 110),
    "street": (70, 70, 90),
}
_OPEN_DOOR, _SHUT_DOOR, _LAMP = (250, 250, 250), (120, 70, 30), (255, 240, 120)


def _silhouettes() -> dict[str, NDArray[np.bool_]]:
    y, x = np.mgrid[0:12, 0:12]
    return {
        "ball": (y - 5.5) ** 2 + (x - 5.5) ** 2 < 30,
        "box": (y < 2) | (y > 9) | (x < 2) | (x > 9),
        "cup": ((x < 3) | (x > 8) | (y > 8)) & (y > 1),
        "book": ((x < 5) | (x > 6)) & (y > 2) & (y < 9),
        "key": ((y > 4) & (y < 7)) | ((x > 8) & (y > 4)),
        "hat": (y > 8) | ((y > 1) & (x > 3) & (x < 8)),
    }


_SILHOUETTE = _silhouettes()


def _door_open(state: str, late: bool) -> bool:
    return state == "ajar" or state == ("opens" if late else "closes")


def _still(facts: Facts, rng: random.Random) -> Frames:
    """Everything but the door, which is the only thing that changes within a segment."""
    image = np.empty((SIDE, SIDE, 3), np.uint8)
    image[:] = _ROOM_RGB[facts[ROOM]]
    image[:9] = 15
    for slot in rng.sample(range(7), VALUES[LAMPS].index(facts[LAMPS]) + 1):
        image[1:8, 2 + slot * 9 : 9 + slot * 9] = _LAMP
    x, y = rng.randint(22, 26), rng.randint(18, 22)
    image[y : y + 20, x : x + 16] = 0
    image[y + 1 : y + 7, x + 1 : x + 15] = 255
    image[y + 3 : y + 6, x + 3 : x + 6] = image[y + 3 : y + 6, x + 10 : x + 13] = 0
    image[y + 7 : y + 19, x + 1 : x + 15] = _FIGURE_RGB[facts[FIGURE]]
    image[48:64, 48:64] = 0
    image[50:62, 50:62][_SILHOUETTE[facts[OBJECT]]] = 255
    image[48:64, 0:16] = 40
    return image


def render_segment(facts: Facts, rng: random.Random, frames: int = FRAMES) -> Frames:
    """Frames of one segment, uint8 [frames, 64, 64, 3]; the door changes at half time."""
    still = _still(facts, rng)
    film = np.repeat(still[None], frames, 0)
    for i in range(frames):
        film[i, 50:64, 3:13] = _OPEN_DOOR if _door_open(facts[DOOR], late=i >= frames / 2) else _SHUT_DOOR
    return film


def write_mp4(path: Path, film: Frames, fps: int | Fraction = FPS) -> None:
    """Encode frames [T, H, W, 3] as H.264; single-threaded, so that the same frames give the same bytes."""
    temporary = path.with_name(f".{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(temporary), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18", "preset": "ultrafast", "threads": "1"})
        stream.height, stream.width, stream.pix_fmt = film.shape[1], film.shape[2], "yuv420p"
        for image in film:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    temporary.replace(path)


def write_stream(path: Path, facts: Sequence[Facts], rng: random.Random) -> None:
    """Render a whole stream into one mp4."""
    write_mp4(path, np.concatenate([render_segment(f, rng) for f in facts]))
