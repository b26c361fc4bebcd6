"""How far an environment's feedback has been used: one watermark, moved by compare-and-swap."""

from collections.abc import Mapping

from pydantic import TypeAdapter, ValidationError

from taskmem.errors import UserError
from taskmem.files import canonical_json
from taskmem.registry.objects import key_of, stored
from taskmem.store import Conflict, Store

Watermark = Mapping[str, int | str]
"""A JSON object of integers and strings; what it means is the feedback room's business."""


class WatermarkMovedError(UserError):
    """Somebody else has moved the environment's watermark; `current` is where it stands, None for no watermark."""

    def __init__(self, environment: str, current: Watermark | None) -> None:
        super().__init__(environment, current)
        self.environment, self.current = environment, current

    def __str__(self) -> str:
        return f"environment {self.environment}: its feedback was used by another run meanwhile; collect it again"


def watermark(store: Store, environment: str) -> dict[str, int | str] | None:
    """Where the environment's watermark stands, None before the first adaptation and empty after a reset.

    UserError if it is damaged.
    """
    return _current(store, environment)[0]


def advance(store: Store, environment: str, to: Watermark, expected: Watermark | None) -> None:
    """Move the watermark from `expected` to `to`; nothing happens if it is there already.

    WatermarkMovedError if it stands elsewhere: of racing adaptations one succeeds. UserError for anything but a JSON object of
    integers and strings.
    """
    new = _validated(canonical_json(dict(to)), f"watermark of environment {environment}", "give what collect wrote")
    current, etag = _current(store, environment)
    if current == new:
        return
    if current != (None if expected is None else dict(expected)):
        raise WatermarkMovedError(environment, current)
    try:
        store.compare_and_swap(_key(environment), canonical_json(new).encode(), etag)
    except Conflict:
        current, _ = _current(store, environment)
        if current != new:
            raise WatermarkMovedError(environment, current) from None


def reset(store: Store, environment: str, expected: Watermark) -> None:
    """Move the watermark from `expected` back to the start: all feedback is to be used again.

    It stands at an empty object then. WatermarkMovedError as `advance`.
    """
    advance(store, environment, {}, expected)


def _key(environment: str) -> str:
    return key_of(environment, "watermark")


def _current(store: Store, environment: str) -> tuple[dict[str, int | str] | None, str | None]:
    key = _key(environment)
    object_ = stored(store, key)
    if object_ is None:
        return None, None
    return _validated(object_.data, key, "restore the object from a backup"), object_.etag


def _validated(text: str | bytes, where: str, remedy: str) -> dict[str, int | str]:
    try:
        value: dict[str, int | str] = TypeAdapter(dict[str, int | str]).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UserError(f"{where}: not a JSON object of integers and strings ({first['msg']}); {remedy}") from None
    return value
