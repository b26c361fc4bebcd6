"""What a command says to a person, a line at a time."""

from rich.console import Console


def say(line: object) -> None:
    """Print a line as it is and whole: never folded, so that a path can be copied; no colours, no markup."""
    Console(soft_wrap=True).print(str(line), highlight=False, markup=False)
