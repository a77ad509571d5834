"""A budgeted choice: one option for every unit, least total loss within a total cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InfeasibleError
from .choices import MAX_TOTAL_COST, Choices, check_costs, check_losses, whole_budget, whole_costs

__all__ = ["CostRange", "Problem", "check_budget", "cost_range"]


@dataclass(frozen=True, eq=False)
class Problem(Choices):
    """Choose exactly one option for every unit: least total loss with a total cost within the budget.

    A multiple-choice knapsack,
    ``minimise sum_u loss[u, o_u]  subject to  sum_u cost[u, o_u] <= budget``.

    Parameters
    ----------
    loss : float64 array (units, options)
        Loss of each option; negative values and values that rise with the cost are welcome.
    cost : int64 array (units, options)
        Bits of each option, at least 0.
    budget : int
        Limit on the total cost in bits.
    allowed : bool array (units, options), optional
        False forbids an option to a unit; what `loss` and `cost` hold there is ignored. Default: all allowed.
    unit_names, option_names : tuple of str, optional
        For messages; units are layers or channels.

    Raises
    ------
    InputError
        Shapes that clash, no unit or no option, a loss that is NaN, infinite or beyond 1e100, a cost that is
        negative or not an integer, costs that total more than 2^62 bits, a unit without an allowed option.
    """

    loss: NDArray[np.float64]
    cost: NDArray[np.int64]
    budget: int
    allowed: NDArray[np.bool_] | None = None
    unit_names: tuple[str, ...] | None = None
    option_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "loss", np.asarray(self.loss, dtype=np.float64))
        object.__setattr__(self, "cost", whole_costs(self.cost))
        object.__setattr__(self, "budget", whole_budget(self.budget))
        if self.allowed is not None:
            object.__setattr__(self, "allowed", np.asarray(self.allowed, dtype=np.bool_))
        check_losses(self)
        check_costs(self, self.cost)

    def cost_of(self, choice: NDArray[np.intp]) -> NDArray[np.int64]:
        """Bits of every unit under a choice, (units,)."""
        return self.cost[np.arange(self.units), choice]


class CostRange(NamedTuple):
    """Least and greatest total bits that any choice has."""

    least: int
    greatest: int


def cost_range(problem: Problem) -> CostRange:
    """Least and greatest total cost in bits over all allowed choices, whatever the budget."""
    if problem.allowed is None:
        lows, highs = problem.cost.min(axis=1), problem.cost.max(axis=1)
    else:
        lows = np.where(problem.allowed, problem.cost, MAX_TOTAL_COST).min(axis=1)
        highs = np.where(problem.allowed, problem.cost, 0).max(axis=1)
    return CostRange(int(lows.sum()), int(highs.sum()))


def check_budget(problem: Problem) -> None:
    """Refuse a budget that no choice meets.

    Raises
    ------
    InfeasibleError
        The budget is below the least total cost; names the least and the greatest.
    """
    least, greatest = cost_range(problem)
    if problem.budget < least:
        raise InfeasibleError(
            f"the budget of {problem.budget:,} bits is below the least possible, {least:,} bits "
            f"(the greatest useful budget is {greatest:,} bits); raise the budget or allow smaller options"
        )
