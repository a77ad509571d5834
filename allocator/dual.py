"""The best prices for several budgets: the Lagrangian dual by cutting planes.

At prices p >= 0, one for each budget, every unit takes its option of least ``loss + sum_k p_k cost_k``, and

    value(p) = sum_u min_o (loss[u, o] + sum_k p_k costs[k, u, o]) - sum_k p_k budgets[k]

bounds the loss of every choice within the budgets from below (Everett, "Generalized Lagrange multiplier
method", Operations Research 11, 1963). Its maximum is the optimum of the linear relaxation, in which options
are mixed in fractions. The value is concave and piecewise linear; what the choice at p is over the budgets is
a slope of it there, so every evaluation gives a plane that lies above it. The planes found so far, within a
region around the best prices, say where to evaluate next (Kelley, "The cutting-plane method for solving
convex programs", SIAM Journal 8, 1960). Near the optimum `sift` takes over, which is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .hull import chunks
from .multi import MultiProblem, cost_ranges

__all__ = ["PricedChoice", "choose_at", "cut_to_prices", "highest_plane"]

MOST_PLANES = 80
GAIN = 1e-3
"""Cutting planes end when the next one can add less than this part of what all before have added."""
RADIUS = 4.0
"""First region around the start, in multiples of the start."""
ACCEPT = 0.1
"""Part of the predicted gain that makes a new centre."""
MOST_TRIALS = 100
SMALLEST, LARGEST = 1e-250, 1e250
"""Lengths of the ray beyond which prices would leave the range of floats."""


@dataclass(frozen=True, eq=False)
class PricedChoice:
    """The choice that is best at given prices.

    Parameters
    ----------
    prices : float64 array (budgets,)
        Loss per unit of each budget.
    choice : int array (units,)
        Options of least priced loss.
    value : float
        ``value(p)`` of this module: a lower bound of the loss of every choice within the budgets.
    over : int64 array (budgets,)
        Costs of the choice minus the budgets; a slope of the value.
    """

    prices: NDArray[np.float64]
    choice: NDArray[np.intp]
    value: float
    over: NDArray[np.int64]


def choose_at(problem: MultiProblem, prices: NDArray[np.float64], *, with_loss: bool = True) -> PricedChoice:
    """Give every unit its option of least priced loss; O(budgets x units x options).

    Parameters
    ----------
    problem : MultiProblem
        The problem.
    prices : float64 array (budgets,)
        At least 0.
    with_loss : bool
        False takes all losses as 0, so that only the costs count.
    """
    choice = np.empty(problem.units, np.intp)
    for part in chunks(problem.units):
        loss = problem.loss[part]
        priced = loss.copy() if with_loss else np.zeros(loss.shape)
        for price, cost in zip(prices, problem.costs, strict=True):
            if price:
                priced += price * cost[part]
        if problem.allowed is not None:
            priced[~problem.allowed[part]] = np.inf
        choice[part] = priced.argmin(axis=1)
    over = problem.costs_of(choice) - problem.limits
    loss_sum = math.fsum(problem.loss_of(choice)) if with_loss else 0.0
    return PricedChoice(prices, choice, math.fsum([loss_sum, *(prices * over)]), over)


def cut_to_prices(problem: MultiProblem) -> PricedChoice:
    """Near-best prices, by cutting planes around a first guess along a ray.

    Parameters
    ----------
    problem : MultiProblem
        `tightened`, with a choice within all budgets.
    """
    free = choose_at(problem, np.zeros(len(problem.budgets)))
    if (free.over <= 0).all():
        return free
    start, length = _along_ray(problem, free)
    # Prices are counted in what they have in common: the spread of the costs that they are worth.
    reference = length / _spreads(problem)

    def at(point: NDArray[np.float64]) -> PricedChoice:
        return choose_at(problem, point * reference)

    best, planes = start, [_plane(free, reference), _plane(start, reference)]
    gain, radius = max(start.value - free.value, 0.0), RADIUS
    for _ in range(MOST_PLANES):
        centre = best.prices / reference
        lower, upper = np.maximum(centre - radius, 0.0), centre + radius
        point, predicted = highest_plane(planes, lower, upper, best.value, gain or 1.0)
        gain = predicted - best.value
        if gain <= GAIN * (best.value - free.value):
            break
        found = at(point)
        planes.append(_plane(found, reference))
        if found.value > best.value + ACCEPT * gain:
            best = found
            if (point >= upper * (1 - 1e-9)).any():
                radius *= 4
    return best


Plane = tuple[float, NDArray[np.float64]]
"""Value at the origin, and slopes."""


def highest_plane(
    planes: list[Plane],
    lower: NDArray[np.float64],
    upper: NDArray[np.float64],
    offset: float,
    scale: float,
    *,
    total: float | None = None,
) -> tuple[NDArray[np.float64], float]:
    """Where the least of the planes is highest: a small linear programme.

    ``maximise t  subject to  t <= value_i + slope_i . x for every plane i,  lower <= x <= upper``.

    Parameters
    ----------
    planes : list of (float, float64 array)
        Value at the origin, and slopes.
    lower, upper : float64 array
        Region of x.
    offset, scale : float
        Solved for is ``(t - offset) / scale``, so that the solver's tolerances are small against `scale`.
    total : float, optional
        Sum that the x must have.

    Returns
    -------
    point : float64 array
        The x.
    height : float
        The t.
    """
    from scipy.optimize import linprog

    values = np.array([value for value, _ in planes])
    slopes = np.array([slope for _, slope in planes])
    count = len(lower)
    result = linprog(
        np.append(np.zeros(count), -1.0),
        A_ub=np.column_stack([-slopes / scale, np.ones(len(values))]),
        b_ub=(values - offset) / scale,
        A_eq=None if total is None else np.append(np.ones(count), 0.0)[None],
        b_eq=None if total is None else [total],
        bounds=[*zip(lower, upper, strict=True), (None, None)],
        method="highs-ds",
    )
    if result.x is None:
        return lower, offset
    return np.clip(result.x[:count], lower, upper), offset + scale * float(result.x[count])


def _plane(found: PricedChoice, reference: NDArray[np.float64]) -> Plane:
    slope = found.over * reference
    return found.value - math.fsum(slope * (found.prices / reference)), slope


def _spreads(problem: MultiProblem) -> NDArray[np.float64]:
    return np.array([max(span.greatest - span.least, 1) for span in cost_ranges(problem)], np.float64)


def _along_ray(problem: MultiProblem, free: PricedChoice) -> tuple[PricedChoice, float]:
    """The best prices, to within a factor of two, among those that weigh the broken budgets alike.

    A price for each budget that the free choice breaks: a length over the spread of its costs. Returns the
    length too.
    """
    direction = np.where(free.over > 0, 1.0 / _spreads(problem), 0.0)
    loss = problem.loss if problem.allowed is None else np.where(problem.allowed, problem.loss, 0.0)
    length = float((loss.max(axis=1) - loss.min(axis=1)).mean()) or 1.0
    rises: Callable[[PricedChoice], bool] = lambda found: bool(direction @ found.over > 0)
    low, high = 0.0, math.inf
    best = free
    step = 2.0
    for _ in range(MOST_TRIALS):
        found = choose_at(problem, length * direction)
        best = found if found.value > best.value else best
        if rises(found):
            low = length
        else:
            high = length
        if high <= 2 * low:
            break
        if high == math.inf:
            length, step = length * step, step * step
        elif low == 0.0:
            length, step = length / step, step * step
        else:
            length = math.sqrt(low * high)
        if not SMALLEST < length < LARGEST:
            break
    return best, min(max(length, SMALLEST), LARGEST)
