"""What every budgeted choice has, whatever its budgets: losses, forbidden options, names, and checks."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

__all__ = ["MAX_TOTAL_COST", "Choices", "check_costs", "check_losses", "whole_budget", "whole_costs"]

MAX_LOSS = 1e100
"""Greatest magnitude of a loss: differences and sums of losses, and slopes per bit, stay finite."""
MAX_TOTAL_COST = 2**62
"""Greatest total cost: sums and differences of costs stay exact in 64-bit integers."""


class Choices:
    """One option for every unit: the part of a problem that its budgets do not change.

    Attributes
    ----------
    loss : float64 array (units, options)
        Loss of each option.
    allowed : bool array (units, options), optional
        False forbids an option to a unit.
    unit_names, option_names : tuple of str, optional
        For messages.
    """

    loss: NDArray[np.float64]
    allowed: NDArray[np.bool_] | None
    unit_names: tuple[str, ...] | None
    option_names: tuple[str, ...] | None

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


def whole_costs(costs: Any, measure: str = "bits") -> NDArray[np.int64]:
    """Costs as 64-bit integers; anything that is not a whole number is refused.

    Raises
    ------
    InputError
        Another kind of number, or one beyond 2^62.
    """
    given = np.asarray(costs)
    if given.dtype.kind not in "iu":
        raise InputError(
            f"costs have dtype {given.dtype}; costs are whole numbers of {measure}, so give int64"
        )
    if given.dtype.kind == "u" and given.size and given.max() > MAX_TOTAL_COST:
        raise InputError(
            f"the greatest cost is {given.max():,} {measure}; costs total at most 2^62 {measure}"
        )
    return given.astype(np.int64, copy=False)


def whole_budget(budget: Any, measure: str = "bits") -> int:
    """A budget as an integer.

    Raises
    ------
    InputError
        Not a whole number.
    """
    try:
        return operator.index(budget)
    except TypeError:
        raise InputError(f"the budget is {budget!r}; give a whole number of {measure} as an int") from None


def check_losses(choices: Choices) -> None:
    """Refuse losses and names that do not fit together, losses that are no numbers, a unit without options.

    Raises
    ------
    InputError
        Names the layer and option, or the shapes that clash.
    """
    shape = choices.loss.shape
    if len(shape) != 2 or 0 in shape:
        raise InputError(
            f"the losses have shape {shape}; give (units, options) with at least one unit and one option"
        )
    for what, names, count in (
        ("unit", choices.unit_names, shape[0]),
        ("option", choices.option_names, shape[1]),
    ):
        if names is not None and len(names) != count:
            raise InputError(f"{len(names)} {what} names are given for {count} {what}s; name each or none")
    wrong = ~(np.abs(choices.loss) <= MAX_LOSS)  # written so that NaN is wrong too
    if choices.allowed is not None:
        _check_shape("allowed entries", choices.allowed, shape)
        wrong &= choices.allowed
        empty = ~choices.allowed.any(axis=1)
        if empty.any():
            raise InputError(
                f"{choices.unit_name(int(empty.argmax()))} has no allowed option; allow at least one"
            )
    if wrong.any():
        unit, option = np.unravel_index(int(wrong.argmax()), wrong.shape)
        raise InputError(
            f"{choices.unit_name(int(unit))}: score is {_score(float(choices.loss[unit, option]))} for "
            f"option {choices.option_name(int(option))}; check that the calibration data has no NaN or "
            "infinite input"
        )


def check_costs(choices: Choices, cost: NDArray[np.int64], measure: str = "bits") -> None:
    """Refuse costs that are negative or too large to be added up.

    Parameters
    ----------
    choices : Choices
        Already checked by `check_losses`.
    cost : int64 array (units, options)
        Costs in one measure.
    measure : str
        What the costs count, for messages.

    Raises
    ------
    InputError
        Names the layer and option, or the shapes that clash.
    """
    _check_shape("costs", cost, choices.loss.shape)
    negative = cost < 0
    if choices.allowed is not None:
        negative &= choices.allowed
    if negative.any():
        unit, option = np.unravel_index(int(negative.argmax()), negative.shape)
        raise InputError(
            f"{choices.unit_name(int(unit))}: cost is {cost[unit, option]:,} {measure} for option "
            f"{choices.option_name(int(option))}; costs are at least 0"
        )
    greatest = (cost if choices.allowed is None else np.where(choices.allowed, cost, 0)).max(axis=1)
    # Summed in floating point, because the integer sum is what could overflow.
    if greatest.sum(dtype=np.float64) > MAX_TOTAL_COST:
        raise InputError(
            f"the greatest costs total more than 2^62 {measure}; give the costs in a larger unit"
        )


def _check_shape(what: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise InputError(f"the {what} have shape {array.shape} and the losses {shape}; give equal shapes")


def _score(value: float) -> str:
    if np.isnan(value):
        return "NaN"
    return "infinite" if np.isinf(value) else f"{value:g}, beyond {MAX_LOSS:g}"
