"""The least size whose measured drop is within a limit: bracketing with few true evaluations.

What scores predict leads, what is measured decides. The prediction places the first budget; after that the
logarithm of the measured drop is interpolated over the logarithm of the predicted loss, which is nearly a
line also where both bend over the size, and the bracket is halved where that does not help: where drops are 0
or negative, which have no logarithm, or jump.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..allocator import SearchOutcome

__all__ = ["Least", "Tried", "budget_of", "least_within"]

Item = TypeVar("Item")

RESOLUTION = 0.01
"""A bracket is narrow enough when it is this share of its upper end."""

EVALUATIONS = 12
SAME_SIDE = 3
"""Steps to one side after which the end of the range is tried itself."""

OVERSHOOT = 1.25
"""Factor in the drop by which a step aims past the limit, so that the bracket closes from the other side."""

BLIND_STEP = 4.0
"""Factor in the predicted loss of a step where the drop has no logarithm: about one bit."""

INNER = 0.1
"""Share of a bracket that interpolation keeps away from its ends, so that every step narrows it."""


@dataclass(frozen=True)
class Tried(Generic[Item]):
    """One evaluation.

    Attributes
    ----------
    budget_bits : int
        Budget that was asked for.
    size_bits : int
        What the plan for it takes, at most the budget.
    drop : float
        As measured; infinite where the output is not finite.
    item : Item
        Whatever the evaluation wants to hand on.
    """

    budget_bits: int
    size_bits: int
    drop: float
    item: Item


@dataclass(frozen=True)
class Least(Generic[Item]):
    """What a search found.

    Attributes
    ----------
    best : Tried or None
        The smallest evaluation with ``drop <= limit``; None where there is none.
    outcome : SearchOutcome
        Why the search ended; NONE where the greatest size is outside the limit, too.
    tried : tuple of Tried
        All evaluations in their order; no budget occurs twice.
    """

    best: Tried[Item] | None
    outcome: SearchOutcome
    tried: tuple[Tried[Item], ...]


def least_within(
    attempt: Callable[[int], Tried[Item]],
    predicted: Callable[[int], float],
    *,
    least: int,
    greatest: int,
    limit: float,
    first_loss: float,
    begin: Tried[Item] | None = None,
    evaluations: int = EVALUATIONS,
) -> Least[Item]:
    """Search the budgets ``least..greatest`` for the smallest whose measured drop is within the limit.

    The drop is taken to fall with the budget; where it does not, the answer is still one that was measured
    within the limit, beside a budget, at most 1% smaller, that was measured outside.

    Parameters
    ----------
    attempt : callable
        From a budget in bits to its evaluation; called at most `evaluations` times, never twice for a budget.
    predicted : callable
        From a budget to the predicted loss; cheap, falling.
    least, greatest : int
        Budgets in bits between which plans differ.
    limit : float
        Greatest drop that is allowed.
    first_loss : float
        Predicted loss at which to begin.
    begin : Tried, optional
        An evaluation that is known already and stands for the first; where it is within the limit, only
        smaller budgets are tried.
    """
    search = _Search(predicted, least, greatest, limit, first_loss)
    tried: list[Tried[Item]] = []
    outside: Tried[Item] | None = None
    within: Tried[Item] | None = None
    outcome = SearchOutcome.EVALUATIONS
    while len(tried) < evaluations:
        last_chance = len(tried) == evaluations - 1 and within is None
        if begin is not None and not tried:
            found = begin
        else:
            found = attempt(greatest if last_chance else search.next_budget(tried, outside, within))
        tried.append(found)
        if found.drop <= limit:
            within = found
        else:
            outside = found
        if outside is None and within is not None and min(within.budget_bits, within.size_bits) <= least:
            outcome = SearchOutcome.LEAST
            break
        if within is None and found.budget_bits >= greatest:
            outcome = SearchOutcome.NONE
            break
        if within is not None and outside is not None:
            width = within.size_bits - outside.budget_bits
            if width <= max(1, RESOLUTION * within.size_bits):
                outcome = SearchOutcome.NARROWED
                break
    return Least(within, outcome, tuple(tried))


@dataclass(frozen=True)
class _Search:
    """Where to look next."""

    predicted: Callable[[int], float]
    least: int
    greatest: int
    limit: float
    first_loss: float

    def next_budget(
        self, tried: list[Tried[Item]], outside: Tried[Item] | None, within: Tried[Item] | None
    ) -> int:
        if outside is not None and within is not None:
            return self._between(tried, outside, within)
        if within is not None:
            if len(tried) > SAME_SIDE:
                return self.least
            nearest = min(within.size_bits, within.budget_bits) - 1
            return max(self.least, min(nearest, self._budget_of(self._aim(within, len(tried), OVERSHOOT))))
        if outside is not None:
            if len(tried) > SAME_SIDE:
                return self.greatest
            aimed = self._budget_of(self._aim(outside, len(tried), 1 / OVERSHOOT))
            return min(self.greatest, max(outside.budget_bits + 1, aimed))
        return self._budget_of(self.first_loss)

    def _aim(self, end: Tried[Item], steps: int, overshoot: float) -> float:
        """Predicted loss where the drop passes the limit, if both change by one factor."""
        here = self.predicted(end.budget_bits)
        if here <= 0:
            return 0.0
        if 0 < end.drop < math.inf and self.limit > 0:
            return here * (self.limit / end.drop) * overshoot**steps
        return here * (BLIND_STEP if overshoot > 1 else 1 / BLIND_STEP) ** steps

    def _between(self, tried: list[Tried[Item]], outside: Tried[Item], within: Tried[Item]) -> int:
        low, high = outside.budget_bits, within.size_bits
        middle = (low + high) // 2
        # Interpolation may crawl along one end; every third step halves.
        budget = middle if len(tried) % 3 == 2 else self._interpolated(outside, within, middle)
        margin = int(INNER * (high - low))
        return max(low + 1, low + margin, min(budget, high - margin, high - 1))

    def _interpolated(self, outside: Tried[Item], within: Tried[Item], middle: int) -> int:
        ends = self.predicted(outside.budget_bits), self.predicted(within.size_bits)
        if min(*ends, outside.drop, within.drop, self.limit) <= 0 or ends[0] <= ends[1]:
            return middle
        if outside.drop == math.inf:
            return middle
        drops = math.log(outside.drop), math.log(within.drop)
        if drops[0] <= drops[1]:
            return middle
        share = (math.log(self.limit) - drops[0]) / (drops[1] - drops[0])
        return self._budget_of(math.exp(math.log(ends[0]) * (1 - share) + math.log(ends[1]) * share))

    def _budget_of(self, loss: float) -> int:
        return budget_of(self.predicted, loss, self.least, self.greatest)


def budget_of(predicted: Callable[[int], float], loss: float, least: int, greatest: int) -> int:
    """Least budget of ``least..greatest`` whose predicted loss is at most this one; `greatest` if none is."""
    while least < greatest:
        middle = (least + greatest) // 2
        if predicted(middle) <= loss:
            greatest = middle
        else:
            least = middle + 1
    return least
