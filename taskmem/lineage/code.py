"""Which code ran."""

import subprocess
from pathlib import Path


def commit() -> str:
    """The commit of the checkout this library runs from, with "-dirty" where it was changed; "unknown" outside of one."""
    root = Path(__file__).parents[2]
    # installed inside of somebody else's checkout, the library is not what its commit names
    if _git(root, "rev-parse", "--show-toplevel") != str(root.resolve()):
        return "unknown"
    return _git(root, "describe", "--always", "--abbrev=40", "--dirty", "--match=") or "unknown"


def _git(folder: Path, *arguments: str) -> str:
    """What git says, empty where it fails or is not there."""
    try:
        answer = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""
