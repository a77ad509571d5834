"""The linear relaxation for every budget at once, from the lower convex hull of every unit.

With options mixed in fractions, each unit follows the lower convex hull of its (cost, loss) points, and the
best mix for any budget takes the hull segments of all units in the order of their slopes (Sinha and Zoltners,
"The multiple-choice knapsack problem", Operations Research 27, 1979). One sort gives the whole frontier.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InfeasibleError
from .problem import Problem

__all__ = ["Frontier", "chunks", "greedy_fill", "lower_frontier"]

CHUNK_UNITS = 32768
"""Units whose temporaries are alive at a time: small enough for a processor cache, large enough for numpy."""


@dataclass(frozen=True, eq=False)
class Frontier:
    """Least loss of the linear relaxation over all budgets: convex, piecewise linear, falling.

    Vertex 0 is the cheapest choice; step k leads from vertex k to vertex k + 1 by giving one unit a larger
    option, so every vertex is a choice of whole options.

    Parameters
    ----------
    cost : int64 array (steps + 1,)
        Bits at each vertex, rising.
    loss : float64 array (steps + 1,)
        Loss at each vertex, falling.
    slope : float64 array (steps,)
        Loss per bit along each step: negative, rising.
    start : int array (units,)
        Options at vertex 0.
    unit, option : int array (steps,)
        Which unit takes which option at each step.
    """

    cost: NDArray[np.int64]
    loss: NDArray[np.float64]
    slope: NDArray[np.float64]
    start: NDArray[np.intp]
    unit: NDArray[np.int32]
    option: NDArray[np.int32]

    def vertex(self, budget: int) -> int:
        """Index of the last vertex within a budget in bits.

        Raises
        ------
        InfeasibleError
            The budget is below the cheapest choice.
        """
        if budget < self.cost[0]:
            raise InfeasibleError(
                f"the budget of {budget:,} bits is below the least possible, {int(self.cost[0]):,} bits"
            )
        return int(np.searchsorted(self.cost, min(budget, int(self.cost[-1])), side="right")) - 1

    def bound(self, budget: int) -> float:
        """Loss of the linear relaxation at a budget: no choice within the budget has less.

        Exact up to the rounding of the sums in `loss`, a relative error of about 1e-16 per step.
        """
        vertex = self.vertex(budget)
        return float(self.loss[vertex]) - self.shadow_price(budget) * (budget - int(self.cost[vertex]))

    def shadow_price(self, budget: int) -> float:
        """Loss that one more bit would save at a budget (loss per bit); 0 where all is bought."""
        vertex = self.vertex(budget)
        return -float(self.slope[vertex]) if vertex < len(self.slope) else 0.0

    def choice(self, budget: int) -> NDArray[np.intp]:
        """Options at the last vertex within a budget, (units,): the relaxation rounded down."""
        vertex = self.vertex(budget)
        choice = self.start.copy()
        # Of repeated units the last assignment stays, and a unit's steps are in rising order.
        choice[self.unit[:vertex]] = self.option[:vertex]
        return choice


def chunks(units: int) -> list[slice]:
    """Slices of at most 32,768 units that cover all of them."""
    return [slice(first, min(first + CHUNK_UNITS, units)) for first in range(0, units, CHUNK_UNITS)]


def lower_frontier(problem: Problem) -> Frontier:
    """Compute the frontier of a problem, whatever its budget.

    Takes O(units x options x hull size) for the hulls, O(steps log steps) for the sort, and memory for the
    steps beside a chunk of temporaries: about 60 bytes for each unit and hull vertex.
    """
    start = np.empty(problem.units, np.intp)
    walks = [_walk_hulls(problem, part, start) for part in chunks(problem.units)]
    unit, option, slope, cost, loss = _Steps.join(walks)
    del walks
    # Stable, so that a unit's equal slopes stay in rising order.
    order = np.argsort(slope, kind="stable")
    slope, unit, option = slope[order], unit[order], option[order]
    total_cost = np.empty(len(order) + 1, np.int64)
    total_cost[0] = problem.cost_of(start).sum()
    np.cumsum(cost[order], out=total_cost[1:])
    total_cost[1:] += total_cost[0]
    # Summed from the end, where losses are least, so that rounding stays small against every partial sum.
    total_loss = np.empty(len(order) + 1)
    total_loss[0] = 0.0
    np.cumsum(-loss[order][::-1], out=total_loss[1:])
    end = start.copy()
    end[unit] = option
    total_loss += math.fsum(problem.loss_of(end))
    return Frontier(total_cost, total_loss[::-1], slope, start, unit, option)


def greedy_fill(problem: Problem, choice: NDArray[np.intp], budget: int) -> NDArray[np.intp]:
    """Spend what a choice leaves of the budget: the change that saves most per bit, while one fits.

    Returns a choice whose loss is at most the given one's and whose cost is within the budget.
    """
    filled = choice.copy()
    slack = budget - int(problem.cost_of(choice).sum())
    candidates = [_savings(problem, part, choice, slack) for part in chunks(problem.units)]
    unit, option, cost, loss = (np.concatenate(column) for column in zip(*candidates, strict=True))
    while len(unit):
        # A change that costs nothing comes first.
        best = int(np.argmin(loss / np.maximum(cost, 0.5)))
        filled[unit[best]] = option[best]
        slack -= int(cost[best])
        fits = (cost <= slack) & (unit != unit[best])
        unit, option, cost, loss = unit[fits], option[fits], cost[fits], loss[fits]
    return filled


class _Steps(NamedTuple):
    """Hull steps: unit, option taken, slope, and the bits and the loss that the step adds."""

    unit: NDArray[np.int32]
    option: NDArray[np.int32]
    slope: NDArray[np.float64]
    cost: NDArray[np.int64]
    loss: NDArray[np.float64]

    @staticmethod
    def join(parts: Sequence[_Steps]) -> _Steps:
        return _Steps(
            np.concatenate([part.unit for part in parts]),
            np.concatenate([part.option for part in parts]),
            np.concatenate([part.slope for part in parts]),
            np.concatenate([part.cost for part in parts]),
            np.concatenate([part.loss for part in parts]),
        )


def _walk_hulls(problem: Problem, part: slice, start: NDArray[np.intp]) -> _Steps:
    """Walk all hulls of a chunk together, from the cheapest option along the steepest slope each time."""
    loss, cost = problem.loss[part], problem.cost[part]
    if problem.allowed is not None:
        # Out of reach: never the cheapest, never on the way down.
        loss = np.where(problem.allowed[part], loss, np.inf)
        cost = np.where(problem.allowed[part], cost, np.iinfo(np.int64).max)
    least = cost.min(axis=1, keepdims=True)
    at = np.where(cost == least, loss, np.inf).argmin(axis=1)
    start[part] = at
    rows = np.arange(len(loss))
    previous = np.full(len(loss), -np.inf)
    found: list[_Steps] = []
    while len(rows):
        here = np.arange(len(rows))
        cost_step = cost - cost[here, at][:, None]
        loss_step = loss - loss[here, at][:, None]
        slopes = np.zeros(loss.shape)
        np.divide(loss_step, cost_step, out=slopes, where=(cost_step > 0) & (loss_step < 0))
        to = slopes.argmin(axis=1)
        falls = slopes[here, to] < 0
        rows, at, here = rows[falls], to[falls], here[falls]
        # Rounding may turn slopes that are all but equal; the order within a unit must stand.
        previous = np.maximum(slopes[here, at], previous[falls])
        unit = (rows + part.start).astype(np.int32)
        moved = cost_step[here, at], loss_step[here, at]
        found.append(_Steps(unit, at.astype(np.int32), previous, *moved))
        loss, cost = loss[here], cost[here]
    return _Steps.join(found)


def _savings(
    problem: Problem, part: slice, choice: NDArray[np.intp], slack: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int64], NDArray[np.float64]]:
    here = np.arange(part.stop - part.start)
    at = choice[part]
    loss_step = problem.loss[part] - problem.loss[part][here, at][:, None]
    cost_step = problem.cost[part] - problem.cost[part][here, at][:, None]
    useful = (loss_step < 0) & (cost_step <= slack)
    if problem.allowed is not None:
        useful &= problem.allowed[part]
    unit, option = np.nonzero(useful)
    return unit + part.start, option, cost_step[unit, option], loss_step[unit, option]
