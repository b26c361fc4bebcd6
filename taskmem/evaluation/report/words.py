"""Numbers and names as the report writes them."""

from taskmem.evaluation.metrics import Difference, Interval

LABELS = {
    "base": "Base",
    "task_prompt": "Base + task prompt",
    "phase_one": "Phase One",
    "phase_two": "Phase Two",
    "phase_two_other_task": "Control: other task",
    "phase_two_random_pairs": "Control: random",
}
NOTES = {
    "base": "the policy as it came",
    "task_prompt": "told the task in its prompt",
    "phase_one": "taught to write good memories",
    "phase_two": "steered by the adapter of the task",
    "phase_two_other_task": "steered by the adapter of another task",
    "phase_two_random_pairs": "steered by an adapter from random pairs",
}
MINUS = "−"


def label(arm: str) -> str:
    """The arm's name for people."""
    return LABELS.get(arm, arm.replace("_", " "))


def note(arm: str) -> str:
    """What the arm is, in a few words; empty for one the report does not know."""
    return NOTES.get(arm, "")


def is_control(arm: str) -> bool:
    """True for an adapter that ought not to help."""
    return label(arm).startswith("Control")


def percent(share: float) -> str:
    """A fraction as per cent, one decimal, without the sign."""
    return f"{100 * share:.1f}"


def points(difference: float) -> str:
    """A signed difference of fractions in percentage points, one decimal."""
    written = f"{100 * difference:+.1f}"
    return "0.0" if written in ("+0.0", "-0.0") else written.replace("-", MINUS)


def percent_range(interval: Interval) -> str:
    """An interval of fractions in per cent."""
    return f"{percent(interval[0])} to {percent(interval[1])}"


def points_range(interval: Interval) -> str:
    """An interval of differences in percentage points."""
    return f"{points(interval[0])} to {points(interval[1])}"


def is_certain(difference: Difference) -> bool:
    """True if the interval excludes zero."""
    low, high = difference.ci95
    return low > 0 or high < 0


def change(difference: Difference) -> str:
    """What a difference did to the accuracy, in words: nothing is claimed where the interval holds zero."""
    if is_certain(difference):
        return f"{'adds' if difference.mean > 0 else 'costs'} {percent(abs(difference.mean))} points"
    return f"makes no certain difference ({points(difference.mean)} points)"
