"""Which task the deployment has: the type with most headroom among those the policy sees."""

import pytest

from taskmem.errors import UserError
from taskmem.loop.tasks import LEAST_PRECISION, choose_tasks


def types(**cells: tuple[float, float]) -> dict[str, dict[str, float]]:
    """Types by name, each (coverage, precision)."""
    return {kind: {"coverage": coverage, "precision": precision} for kind, (coverage, precision) in cells.items()}


def test_the_two_types_of_lowest_coverage_are_chosen_lowest_first() -> None:
    assert choose_tasks(types(a=(0.5, 0.9), b=(0.2, 0.9), c=(0.4, 0.9), d=(0.9, 0.9))) == ("b", "c")


def test_a_type_of_low_precision_is_no_task_however_low_its_coverage() -> None:
    assert choose_tasks(types(a=(0.1, 0.74), b=(0.6, 0.9), c=(0.5, 0.9))) == ("c", "b")


def test_the_least_precision_itself_is_enough() -> None:
    assert LEAST_PRECISION == 0.75
    assert choose_tasks(types(a=(0.1, 0.75), b=(0.6, 0.75))) == ("a", "b")


def test_equal_coverage_is_decided_by_name() -> None:
    assert choose_tasks(types(c=(0.3, 0.9), a=(0.3, 0.9), b=(0.3, 0.9))) == ("a", "b")


def test_a_type_that_was_never_answered_is_no_task() -> None:
    assert choose_tasks(types(a=(0.0, 0.0), b=(0.4, 0.8), c=(0.5, 0.8))) == ("b", "c")


@pytest.mark.parametrize("seen", [{}, {"a": (0.2, 0.9)}])
def test_fewer_than_two_types_are_a_user_s_error_in_one_line(seen: dict[str, tuple[float, float]]) -> None:
    with pytest.raises(UserError, match=r"development split.*train Phase One longer") as caught:
        choose_tasks(types(**seen, blind=(0.5, 0.1)))
    assert "\n" not in str(caught.value)
    assert "blind" not in str(caught.value)
