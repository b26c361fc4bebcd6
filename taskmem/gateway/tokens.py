"""Bearer tokens: which environment a caller belongs to. Only a token's SHA-256 is kept.

In the object store, `tokens/<sha256 hex of the token>` holds the `Token`. A token is shown once, when it is made.
"""

import base64
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from typing import Annotated

from pydantic import AwareDatetime, Field, ValidationError

from taskmem.errors import UserError
from taskmem.files import sha256_bytes
from taskmem.records import Name, Record, one_line
from taskmem.registry.objects import key_of, parse, stored, to_bytes
from taskmem.store import Conflict, Store

FOLDER = "tokens"
POLICY = "policy"  # the model's name that stands for no adapter
SHAPE = re.compile(r"tm_[A-Za-z0-9_-]{43}")
SHORTEST_PREFIX = 8
REMEMBERED = 10_000
Line = Annotated[str, Field(max_length=200)]


class Token(Record):
    """What is kept of a token: whose it is, what for, by whom; `revoked` is the time from which it is good for nothing."""

    environment: Name
    label: Line
    created: AwareDatetime
    by: Annotated[str, Field(min_length=1, max_length=200)]
    revoked: AwareDatetime | None


def create_token(store: Store, environment: str, by: str, time: datetime, label: str = "") -> str:
    """A new token for an environment, which need not have an adapter yet; UserError for an unsafe or reserved name."""
    key_of(environment)
    if environment == POLICY:
        raise UserError(f"environment {POLICY}: this name stands for the policy without adapter; choose another")
    try:
        record = Token(environment=environment, label=label, created=time, by=by, revoked=None)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UserError(f"token {first['loc'][0]}: {first['msg']}; give a short line") from None
    if one_line(label) != label or one_line(by) != by:
        raise UserError("token: label and by are shown in lists; give lines without control characters")
    token = f"tm_{base64.urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b'=').decode()}"
    store.put_if_absent(_key(sha256_bytes(token)), to_bytes(record))
    return token


def tokens(store: Store, environment: str | None = None) -> list[tuple[str, Token]]:
    """Digest and record of every token, or of an environment's, oldest first; UserError naming a damaged one."""
    found = [(digest, known) for digest in _digests(store, "") if (known := _read(store, digest)) is not None]
    chosen = [(digest, known) for digest, known in found if environment in (None, known.environment)]
    return sorted(chosen, key=lambda pair: (pair[1].created, pair[0]))


def revoke_token(store: Store, prefix: str, time: datetime) -> tuple[str, Token]:
    """Make the token whose digest begins with `prefix` (8 digits or more) good for nothing; its digest and record.

    One that was revoked stays so from then on. UserError if no token has this prefix, or several have.
    """
    if not re.fullmatch(rf"[0-9a-f]{{{SHORTEST_PREFIX},64}}", prefix):
        raise UserError(
            f"token {one_line(prefix)}: give {SHORTEST_PREFIX} or more hex digits of its digest, from the list"
        )
    found = _digests(store, prefix)
    if len(found) != 1:
        what = f"{len(found)} tokens begin so; give more digits" if found else "no such token; see `taskmem token list`"
        raise UserError(f"token {prefix}: {what}")
    key = _key(found[0])
    while True:
        object_ = stored(store, key)
        if object_ is None:
            raise UserError(f"token {prefix}: removed meanwhile; see `taskmem token list`")
        known = parse(object_.data, Token, key)
        if known.revoked is not None:
            return found[0], known
        revoked = known.model_copy(update={"revoked": time})
        try:
            store.compare_and_swap(key, to_bytes(revoked), object_.etag)
        except Conflict:
            continue
        return found[0], revoked


class Tokens:
    """Whose a token is, asked for again after `seconds`: so long a revoked one may still be good. Thread-safe.

    `clock` counts seconds. What it remembers is bounded, by digest, of good tokens and of bad ones apart: who guesses drives no
    good one out.
    """

    def __init__(self, store: Store, clock: Callable[[], float], seconds: float = 5.0, most: int = REMEMBERED) -> None:
        self._store, self._clock, self._seconds, self._most = store, clock, seconds, most
        self._good: OrderedDict[str, tuple[float, str]] = OrderedDict()
        self._bad: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def environment_of(self, token: str) -> str | None:
        """The environment of a token, None if it is unknown or revoked; StoreFault or UserError if the store fails."""
        if not SHAPE.fullmatch(token):
            return None
        digest, now = sha256_bytes(token), self._clock()
        with self._lock:
            if (good := self._good.get(digest)) and now - good[0] < self._seconds:
                self._good.move_to_end(digest)
                return good[1]
            if (since := self._bad.get(digest)) is not None and now - since < self._seconds:
                return None
        known = _read(self._store, digest)
        environment = known.environment if known is not None and known.revoked is None else None
        with self._lock:
            self._good.pop(digest, None)
            self._bad.pop(digest, None)
            if environment is None:
                self._bad[digest] = now
            else:
                self._good[digest] = now, environment
            for kept in (self._good, self._bad):
                while len(kept) > self._most:
                    kept.popitem(last=False)
        return environment


def _key(digest: str) -> str:
    return f"{FOLDER}/{digest}"


def _digests(store: Store, prefix: str) -> list[str]:
    return [key.removeprefix(f"{FOLDER}/") for key in store.list(f"{FOLDER}/{prefix}")]


def _read(store: Store, digest: str) -> Token | None:
    object_ = stored(store, _key(digest))
    return None if object_ is None else parse(object_.data, Token, _key(digest))
