"""Draws that depend on the seed and on names alone, never on the order in which things arrive."""

from taskmem.files import canonical_json, sha256_bytes


def ticket(seed: int, *names: str | int) -> str:
    """A lot for the thing so named: the lowest lots of a set are a uniform draw from it without replacement."""
    return sha256_bytes(canonical_json([seed, *names]))
