"""The budget: money is set aside before a call is sent, and settled when its cost is known."""

import threading
from dataclasses import dataclass
from typing import Self

from taskmem.errors import UserError
from taskmem.roles import BudgetSettings, Price

NANO = 1_000_000_000  # money is counted in whole billionths, so that sums are exact
MILLION = 1_000_000


@dataclass(frozen=True)
class Charge:
    """Tokens, and money in billionths."""

    tokens: int
    nano: int

    @classmethod
    def of(cls, tokens: int, money: float) -> Self:
        """A charge from tokens and money."""
        return cls(tokens, round(money * NANO))

    @classmethod
    def priced(cls, price: Price, prompt: int, completion: int) -> Self:
        """What so many tokens cost, rounded up to the billionth."""
        nano = (_nano(price.prompt) * prompt + _nano(price.completion) * completion + MILLION - 1) // MILLION
        return cls(prompt + completion, nano)

    @property
    def money(self) -> float:
        """In the currency of the prices."""
        return self.nano / NANO

    def __add__(self, other: "Charge") -> "Charge":
        return Charge(self.tokens + other.tokens, self.nano + other.nano)

    def __sub__(self, other: "Charge") -> "Charge":
        return Charge(self.tokens - other.tokens, self.nano - other.nano)


NOTHING = Charge(0, 0)


def _nano(money: float) -> int:
    return round(money * NANO)


class Purse:
    """Never spends more than `budget`, however many calls are in flight; thread-safe."""

    def __init__(self, budget: BudgetSettings, spent: Charge, place: str) -> None:
        """`spent` before; `place` stands in the message when it is empty."""
        self._money = None if budget.money is None else _nano(budget.money)
        self._tokens = budget.tokens
        self._place = place
        self.spent = spent
        self._aside = NOTHING
        self._ended: str | None = None
        self._changed = threading.Condition()

    def reserve(self, most: Charge) -> None:
        """Set `most` aside; waits while calls in flight may still leave enough. UserError if nothing can free it.

        Once it was refused or `end` was called, nothing more is given.
        """
        with self._changed:
            while self._ended is None and not self._fits(self.spent + self._aside + most):
                if not self._fits(self.spent + most):
                    self._ended = self._empty(most)
                else:
                    self._changed.wait()
            if self._ended is not None:
                self._changed.notify_all()
                raise UserError(self._ended)
            self._aside += most

    def end(self, reason: str) -> None:
        """Spend nothing more, for this reason; what is set aside is still settled."""
        with self._changed:
            self._ended = self._ended or reason
            self._changed.notify_all()

    def settle(self, reserved: Charge, charge: Charge) -> None:
        """Spend `charge` of what was set aside and give back the rest."""
        with self._changed:
            self._aside -= reserved
            self.spent += charge
            self._changed.notify_all()

    def _fits(self, total: Charge) -> bool:
        money = self._money is None or total.nano <= self._money
        return money and (self._tokens is None or total.tokens <= self._tokens)

    def _empty(self, most: Charge) -> str:
        money = "" if self._money is None else f"{self.spent.money:.6g} of {self._money / NANO:.6g} in money and "
        tokens = f"{self.spent.tokens}" + ("" if self._tokens is None else f" of {self._tokens}")
        return (
            f"{self._place}: the budget ends here: {money}{tokens} tokens are spent and the next call may take "
            f"{most.money:.6g} and {most.tokens} tokens; raise calls.budget in the profile and run again with --resume: "
            "what was answered is kept and not paid again"
        )
