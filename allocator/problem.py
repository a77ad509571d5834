"""A budgeted choice: one option for every unit, least total loss within a total cost."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InfeasibleError, InputError

__all__ = ["CostRange", "Problem", "check_budget", "cost_range"]

MAX_LOSS = 1e100
"""Greatest magnitude of a loss: differences and sums of losses, and slopes per bit, stay finite."""
MAX_TOTAL_BITS = 2**62
"""Greatest total cost: sums and differences of costs stay exact in 64-bit integers."""


@dataclass(frozen=True, eq=False)
class Problem:
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
        object.__setattr__(self, "cost", _whole_bits(self.cost))
        object.__setattr__(self, "budget", _whole_budget(self.budget))
        if self.allowed is not None:
            object.__setattr__(self, "allowed", np.asarray(self.allowed, dtype=np.bool_))
        _check_shapes(self)
        _check_values(self)

    @property
    def units(self) -> int:
        """Number of units."""
        return len(self.loss)

    @property
    def options(self) -> int:
        """Number of options."""
        return int(self.loss.shape[1])

    def unit_name(self, unit: int) -> str:
        """How messages call a unit, such as ``layer 'conv1'``."""
        return f"layer '{self.unit_names[unit]}'" if self.unit_names else f"unit {unit}"

    def option_name(self, option: int) -> str:
        """How messages call an option."""
        return self.option_names[option] if self.option_names else str(option)

    def loss_of(self, choice: NDArray[np.intp]) -> NDArray[np.float64]:
        """Loss of every unit under a choice, (units,)."""
        return self.loss[np.arange(self.units), choice]

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
        lows = np.where(problem.allowed, problem.cost, MAX_TOTAL_BITS).min(axis=1)
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


def _whole_bits(cost: Any) -> NDArray[np.int64]:
    given = np.asarray(cost)
    if given.dtype.kind not in "iu":
        raise InputError(f"costs have dtype {given.dtype}; costs are whole numbers of bits, so give int64")
    if given.dtype.kind == "u" and given.size and given.max() > MAX_TOTAL_BITS:
        raise InputError(f"the greatest cost is {given.max():,} bits; costs total at most 2^62 bits")
    return given.astype(np.int64, copy=False)


def _whole_budget(budget: Any) -> int:
    try:
        return operator.index(budget)
    except TypeError:
        raise InputError(f"the budget is {budget!r}; give a whole number of bits as an int") from None


def _check_shapes(problem: Problem) -> None:
    shape = problem.loss.shape
    if len(shape) != 2 or 0 in shape:
        raise InputError(
            f"the losses have shape {shape}; give (units, options) with at least one unit and one option"
        )
    for what, array in (("costs", problem.cost), ("allowed entries", problem.allowed)):
        if array is not None and array.shape != shape:
            raise InputError(f"the {what} have shape {array.shape} and the losses {shape}; give equal shapes")
    for what, names, count in (
        ("unit", problem.unit_names, shape[0]),
        ("option", problem.option_names, shape[1]),
    ):
        if names is not None and len(names) != count:
            raise InputError(f"{len(names)} {what} names are given for {count} {what}s; name each or none")


def _check_values(problem: Problem) -> None:
    loss, cost, allowed = problem.loss, problem.cost, problem.allowed
    wrong = ~(np.abs(loss) <= MAX_LOSS)  # written so that NaN is wrong too
    negative = cost < 0
    if allowed is not None:
        wrong &= allowed
        negative &= allowed
        empty = ~allowed.any(axis=1)
        if empty.any():
            raise InputError(
                f"{problem.unit_name(int(empty.argmax()))} has no allowed option; allow at least one"
            )
    if wrong.any():
        unit, option = np.unravel_index(int(wrong.argmax()), wrong.shape)
        raise InputError(
            f"{problem.unit_name(int(unit))}: score is {_score(float(loss[unit, option]))} for option "
            f"{problem.option_name(int(option))}; check that the calibration data has no NaN or infinite "
            "input"
        )
    if negative.any():
        unit, option = np.unravel_index(int(negative.argmax()), negative.shape)
        raise InputError(
            f"{problem.unit_name(int(unit))}: cost is {cost[unit, option]:,} bits for option "
            f"{problem.option_name(int(option))}; costs are at least 0"
        )
    greatest = (cost if allowed is None else np.where(allowed, cost, 0)).max(axis=1)
    # Summed in floating point, because the integer sum is what could overflow.
    if greatest.sum(dtype=np.float64) > MAX_TOTAL_BITS:
        raise InputError("the greatest costs total more than 2^62 bits; give the costs in a larger unit")


def _score(value: float) -> str:
    if np.isnan(value):
        return "NaN"
    return "infinite" if np.isinf(value) else f"{value:g}, beyond {MAX_LOSS:g}"
