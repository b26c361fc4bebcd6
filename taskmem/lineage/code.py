"""Which code ran."""

import os
import subprocess
from pathlib import Path

VARIABLE = "TASKMEM_COMMIT"
"""By this variable an image says which commit it was built from."""


def commit() -> str:
    """The commit of the checkout this library runs from, with "-dirty" where it was changed.

    Outside of one, what an image says; else "unknown".
    """
    root = Path(__file__).parents[2]
    # installed inside of somebody else's checkout, the library is not what its commit names
    if _git(root, "rev-parse", "--show-toplevel") != str(root.resolve()):
        return os.environ.get(VARIABLE) or "unknown"
    return _git(root, "describe", "--always", "--abbrev=40", "--dirty", "--match=") or "unknown"


def _git(folder: Path, *arguments: str) -> str:
    """What git says, empty where it fails or is not there."""
    try:
        answer = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""
