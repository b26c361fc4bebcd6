"""Which code ran."""

import subprocess
from pathlib import Path


def commit() -> str:
    """The commit of the checkout this library runs from, with "-dirty" where it was changed; "unknown" outside of one."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--dirty", "--match="]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # an image without git
        return "unknown"
    return answer.stdout.strip() if answer.returncode == 0 else "unknown"
