"""A budgeted choice whose loss has interactions: a linear part, and the square of a sum over the units.

With a factor ``v[u, o, :]`` (rows) for every option of every unit, the joint loss of a choice is

    loss(o_1..o_U) = sum_u loss[u, o_u] + 1/2 | offset + sum_u v[u, o_u, :] |^2,

which keeps the interactions of all pairs of units without ever forming their Gram matrix. It is convex over
mixes of options, so its relaxation bounds every choice from below.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .hull import greedy_fill, lower_frontier
from .multi import MultiProblem
from .problem import cost_range
from .solve_multi import good_choice

__all__ = ["JointProblem", "descend", "half_square"]

PROXIMAL_STEPS = 60
LEAST_PROXIMITY, GREATEST_PROXIMITY = 0.25, 1024.0


@dataclass(frozen=True, eq=False)
class JointProblem:
    """Choose one option for every unit within the budgets: least joint loss.

    Parameters
    ----------
    linear : MultiProblem
        The linear part of the loss, costs, budgets and forbidden options.
    factors : float32 array (units, options, rows)
        v, scaled so that half of its squared sum is a loss. Rows come last, so that what a choice picks lies
        together in memory.
    offset : float32 array (rows,), optional
        What is added before squaring; default: 0.

    Raises
    ------
    InputError
        Shapes that clash, or a factor that is NaN or infinite; names the unit and option.
    """

    linear: MultiProblem
    factors: NDArray[np.float32]
    offset: NDArray[np.float32] = field(default_factory=lambda: np.zeros(1, np.float32))

    def __post_init__(self) -> None:
        factors = np.ascontiguousarray(self.factors, dtype=np.float32)
        if factors.ndim != 3 or factors.shape[:2] != self.linear.loss.shape:
            raise InputError(
                f"the factors have shape {factors.shape} and the losses {self.linear.loss.shape}; give "
                "(units, options, rows)"
            )
        # A sum of squares is finite exactly where all are, and needs no array of truth values.
        if not np.isfinite(np.einsum("uor,uor->", factors, factors, dtype=np.float64)):
            wrong = ~np.isfinite(factors).all(axis=2)
            unit, option = np.unravel_index(int(wrong.argmax()), wrong.shape)
            raise InputError(
                f"{self.linear.unit_name(int(unit))}: a factor of option "
                f"{self.linear.option_name(int(option))} is NaN or infinite; profile again"
            )
        object.__setattr__(self, "factors", factors)
        offset = np.broadcast_to(np.asarray(self.offset, dtype=np.float32), factors.shape[2])
        object.__setattr__(self, "offset", offset)

    @cached_property
    def squares(self) -> NDArray[np.float32]:
        """``|v[u, o]|^2``, (units, options)."""
        squares: NDArray[np.float32] = np.einsum("uor,uor->uo", self.factors, self.factors)
        return squares

    def picked(self, choice: NDArray[np.intp]) -> NDArray[np.float32]:
        """``v[u, o_u]`` of every unit, (units, rows)."""
        return self.factors[np.arange(self.linear.units), choice]

    def residual(self, choice: NDArray[np.intp]) -> NDArray[np.float32]:
        """``offset + sum_u v[u, o_u]``, (rows,)."""
        residual: NDArray[np.float32] = self.offset + self.picked(choice).sum(axis=0, dtype=np.float64)
        return residual.astype(np.float32)

    def loss_of(self, choice: NDArray[np.intp]) -> float:
        """Joint loss of a choice."""
        return float(self.linear.loss_of(choice).sum()) + half_square(self.residual(choice))

    def gradient(self, residual: NDArray[np.float32]) -> NDArray[np.float64]:
        """``loss[u, o] + < residual, v[u, o] >``, (units, options): slope of the loss over mixes."""
        flat = self.factors.reshape(-1, self.factors.shape[2])
        return self.linear.loss + (flat @ residual).reshape(self.linear.loss.shape)

    def distance(self, choice: NDArray[np.intp]) -> NDArray[np.float64]:
        """``1/2 |v[u, o] - v[u, o_u]|^2``, (units, options): how far each option is from the choice."""
        own = self.squares[np.arange(self.linear.units), choice][:, None]
        products = (self.factors @ self.picked(choice)[:, :, None])[:, :, 0]
        distance: NDArray[np.float64] = (self.squares - 2 * products + own).astype(np.float64) / 2
        return np.maximum(distance, 0.0)


def descend(
    joint: JointProblem, start: NDArray[np.intp], *, deadline: float | None = None
) -> NDArray[np.intp]:
    """Move many units at a time while the joint loss falls; the budgets are kept.

    From a choice y the loss is majorised by its slope and ``t`` times the distance that every unit moves; the
    minimiser within the budgets is accepted where the joint loss falls, else t is doubled.

    Parameters
    ----------
    joint : JointProblem
        The problem.
    start : int array (units,)
        A choice within the budgets; what is returned is never worse.
    deadline : float, optional
        Time on `time.monotonic` after which no further move is tried.
    """
    units = np.arange(joint.linear.units)
    choice, residual = start, joint.residual(start)
    loss = joint.loss_of(start)
    distance = joint.distance(choice)
    proximity, choose = LEAST_PROXIMITY, _Chooser(joint.linear)
    for _ in range(PROXIMAL_STEPS):
        if deadline is not None and time.monotonic() >= deadline:
            break
        slope = joint.gradient(residual)
        slope -= slope[units, choice][:, None]
        moved = choose(slope + proximity * distance, choice)
        found = joint.loss_of(moved)
        if found < loss:
            choice, loss, residual = moved, found, joint.residual(moved)
            distance = joint.distance(choice)
            proximity = max(proximity / 2, LEAST_PROXIMITY)
        elif proximity >= GREATEST_PROXIMITY or bool((moved == choice).all()):
            break
        else:
            proximity *= 2
    return choice


class _Chooser:
    """Choices within the budgets that are good for linear losses.

    Under several budgets each starts from the prices of the one before, whose losses are much like its own.
    """

    def __init__(self, problem: MultiProblem) -> None:
        self._problem = problem
        self._prices: NDArray[np.float64] | None = None

    def __call__(self, loss: NDArray[np.float64], known: NDArray[np.intp]) -> NDArray[np.intp]:
        problem = replace(self._problem, loss=loss)
        if len(problem.budgets) > 1:
            choice, self._prices = good_choice(problem, known, self._prices)
            return choice
        single = problem.single(0)
        budget = min(single.budget, cost_range(single).greatest)
        return greedy_fill(single, lower_frontier(single).choice(budget), budget)


def half_square(residual: NDArray[np.float32]) -> float:
    """``1/2 |residual|^2``, summed in double precision."""
    return float(np.square(residual, dtype=np.float64).sum()) / 2
