"""What every budget buys: the least loss over the whole range of costs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .codes import CodeSavings
from .hull import Frontier, lower_frontier
from .multi import MultiProblem
from .problem import Problem
from .solve import solve_on

__all__ = ["ParetoCurve", "pareto_curve"]

EXACT_UNITS = 2_000
"""Up to this many units every point is solved; beyond, the relaxation's vertices lie closer than a pixel."""
MOST_LOWERED = 100
"""Vertices of the relaxation whose bound is lowered by what groups save: each takes a pass over all units."""


@dataclass(frozen=True, eq=False)
class ParetoCurve:
    """Choices that are best for their cost, and the bound below them; arrays rise in cost, fall in loss.

    Parameters
    ----------
    cost : int64 array (points,)
        Bits of each choice.
    loss : float64 array (points,)
        Its loss.
    bound_cost : int64 array (vertices,)
        Bits at vertices of the linear relaxation.
    bound_loss : float64 array (vertices,)
        Proven there: the loss of the relaxation, lowered where groups of units save. Lines between vertices
        are the relaxation too, up to the thinning of the vertices; a lowered bound lies somewhat below them.
    """

    cost: NDArray[np.int64]
    loss: NDArray[np.float64]
    bound_cost: NDArray[np.int64]
    bound_loss: NDArray[np.float64]

    def raised(self, loss: float) -> ParetoCurve:
        """The same where every choice has this loss besides."""
        return replace(self, loss=self.loss + loss, bound_loss=self.bound_loss + loss)


def pareto_curve(
    problem: Problem, savings: CodeSavings | None = None, *, points: int = 200, vertices: int = 1000
) -> ParetoCurve:
    """Best choices for budgets spread evenly from the least cost to the least loss, whatever the budget.

    Parameters
    ----------
    problem : Problem
        Its own budget plays no part.
    savings : CodeSavings, optional
        What groups of units save where they have one option, which lowers the bound.
    points : int
        Number of budgets; fewer points come back where the same choice serves several.
    vertices : int
        Most vertices of the relaxation to return.
    """
    frontier = lower_frontier(problem)
    least, greatest = int(frontier.cost[0]), int(frontier.cost[-1])
    shown = _spread(frontier.cost, vertices if savings is None else min(vertices, MOST_LOWERED))
    if problem.units <= EXACT_UNITS:
        # Clipped, because great costs are rounded as floats.
        budgets = np.unique(np.linspace(least, greatest, points).astype(np.int64).clip(least, greatest))
        solved = [solve_on(frontier, replace(problem, budget=int(budget))) for budget in budgets]
        cost = np.array([solution.cost for solution in solved], np.int64)
        loss = np.array([solution.loss for solution in solved])
    else:
        chosen = _spread(frontier.cost, points)
        cost, loss = frontier.cost[chosen], frontier.loss[chosen]
    falling = np.flatnonzero(np.append(True, loss[1:] < np.minimum.accumulate(loss)[:-1]))
    bound = frontier.loss[shown] if savings is None else _lowered(problem, savings, frontier, shown)
    return ParetoCurve(cost[falling], loss[falling], frontier.cost[shown], bound)


def _lowered(
    problem: Problem, savings: CodeSavings, frontier: Frontier, vertices: NDArray[np.intp]
) -> NDArray[np.float64]:
    """The bound at vertices of the relaxation where groups of one option save.

    Every price gives a line below the loss of all choices, which falls by the price for every bit; of the
    lines at the vertices' prices the highest counts.
    """
    free = MultiProblem(problem.loss, problem.cost[None], (0,), ("size",), problem.allowed)
    costs = frontier.cost[vertices]
    prices = [frontier.shadow_price(int(cost)) for cost in costs]
    lines = [savings.bound(free, np.array([price])) - price * costs for price in prices]
    return np.asarray(np.max(lines, axis=0))


def _spread(cost: NDArray[np.int64], count: int) -> NDArray[np.intp]:
    """Indices of at most `count` vertices, evenly over the cost, with both ends."""
    if len(cost) <= count:
        return np.arange(len(cost))
    wanted = np.linspace(float(cost[0]), float(cost[-1]), count - 1)
    return np.unique(np.append(np.searchsorted(cost[:-1], wanted, side="left"), len(cost) - 1))
