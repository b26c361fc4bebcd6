"""Object store: put-if-absent and compare-and-swap behind one protocol."""

from taskmem.store.local import LocalStore
from taskmem.store.opening import open_store
from taskmem.store.protocol import (
    AlreadyExists,
    Conflict,
    CorruptObject,
    InvalidKey,
    KeyMissing,
    Store,
    Stored,
    StoreFault,
)
from taskmem.store.s3_faults import OutcomeUnknown

__all__ = [
    "AlreadyExists",
    "Conflict",
    "CorruptObject",
    "InvalidKey",
    "KeyMissing",
    "LocalStore",
    "OutcomeUnknown",
    "Store",
    "StoreFault",
    "Stored",
    "open_store",
]
