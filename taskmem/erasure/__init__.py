"""Erasure: a stream or a source of feedback is forgotten, and a tombstone stays."""

from taskmem.erasure.tombstones import Tombstone, erased_objects, tombstones

__all__ = ["Tombstone", "erased_objects", "tombstones"]
