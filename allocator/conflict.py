"""Why several budgets cannot be met: the least that each needs, which of them clash, and by how much.

For weights w >= 0 with sum 1, every choice has
``max_k costs[k] / budgets[k] >= sum_k w_k costs[k] / budgets[k]``, and the least of the right side over all
choices splits into units. The greatest such bound, less 1, is the excess: the part by which all budgets
together would have to grow before a mix of options fits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..errors import InfeasibleError
from .dual import choose_at, highest_plane
from .multi import MultiProblem, cost_ranges, possible_options
from .quiet import without_solver_output

__all__ = ["PRECISION", "Clash", "check_budgets", "check_together", "common_excess", "percent_up", "refuse"]

MOST_PLANES = 200
MOST_WHOLE = 20_000
"""Units times options up to which it is told of whole options how far the budgets are off."""
MOST_NODES = 2000
PRECISION = 1e-9
"""Relative precision of the common excess; float64 sums of costs are a thousand times better."""


@dataclass(frozen=True, eq=False)
class Clash:
    """How far budgets are from being met together.

    Parameters
    ----------
    excess : float
        Part by which all budgets together must grow, at the least, before a mix of options fits: the
        smallest t with ``costs[k] <= (1 + t) budgets[k]`` for every k; not above 0 where one fits.
    choice : int array (units,), optional
        A choice of whole options within all budgets, where one was met on the way.
    """

    excess: float
    choice: NDArray[np.intp] | None


def check_budgets(problem: MultiProblem) -> None:
    """Refuse budgets that cannot be met even one at a time.

    Raises
    ------
    InfeasibleError
        Names every such budget with the least and the greatest total cost.
    """
    failing = [
        f"{name}: the budget of {problem.amount(k, problem.budgets[k])} is below the least possible, "
        f"{problem.amount(k, span.least)} (the greatest useful is {problem.amount(k, span.greatest)})"
        for k, (name, span) in enumerate(zip(problem.budget_names, cost_ranges(problem), strict=True))
        if problem.budgets[k] < span.least
    ]
    if failing:
        raise InfeasibleError(
            "; ".join(failing) + "; raise the budget, or allow options that cost less of it"
        )


def check_together(problem: MultiProblem) -> Clash:
    """Refuse budgets that cannot be met, alone or by any mix of options together.

    Raises
    ------
    InfeasibleError
        Names the budgets that are too small, or those that clash and how far they are off.
    """
    check_budgets(problem)
    if not possible_options(problem).any(axis=1).all():
        raise refuse(problem)
    clash = common_excess(problem)
    if clash.excess > PRECISION:
        raise refuse(problem)
    return clash


def common_excess(problem: MultiProblem) -> Clash:
    """How far the budgets are from being met together, by cutting planes over the weights.

    Ends early where a choice within all budgets turns up, or once it is clear that a mix fits.

    Parameters
    ----------
    problem : MultiProblem
        Every budget can be met alone, and every unit has options that cost nothing of budgets of 0.
    """
    problem = replace(problem, allowed=_free_options(problem))
    budgets = np.maximum(problem.limits.astype(np.float64), 1.0)
    count = len(budgets)
    weights, best = np.full(count, 1.0 / count), -math.inf
    planes: list[tuple[float, NDArray[np.float64]]] = []
    for _ in range(MOST_PLANES):
        found = choose_at(problem, weights / budgets, with_loss=False)
        if (found.over <= 0).all():
            return Clash(min(best, 0.0), found.choice)
        # The value is what the slopes give at these weights, so the planes pass through the origin.
        planes.append((0.0, found.over / budgets))
        best = max(best, found.value)
        weights, height = highest_plane(
            planes, np.zeros(count), np.ones(count), max(best, 0.0), max(abs(best), PRECISION), total=1.0
        )
        if height <= max(best, 0.0) + PRECISION:
            break
    return Clash(best, None)


def refuse(problem: MultiProblem) -> InfeasibleError:
    """The error for budgets that no choice meets together: which of them clash, and how far they are off.

    Budgets are left out one after the other as long as the rest still clashes; what remains is minimal.

    Parameters
    ----------
    problem : MultiProblem
        Every budget can be met alone, and no choice meets all of them.
    """
    kept = list(range(len(problem.budgets)))
    excess = _excess(problem)
    for k in list(kept):
        rest = [other for other in kept if other != k]
        without = _excess(_subset(problem, rest)) if len(rest) > 1 else 0.0
        if without > PRECISION:
            kept, excess = rest, without
    spans, names = cost_ranges(problem), problem.budget_names
    alone = [
        f"{names[k]} takes {problem.amount(k, spans[k].least)} to {problem.amount(k, spans[k].greatest)}"
        for k in kept
    ]
    return InfeasibleError(
        f"the budgets {' and '.join(repr(names[k]) for k in kept)} can be met one at a time but not "
        f"together: {_how_far(problem, kept, excess)}. Alone, {'; '.join(alone)}. Raise one of them further "
        "or all of them a little, or allow cheaper options"
    )


def _how_far(problem: MultiProblem, kept: list[int], excess: float) -> str:
    budgets, names = problem.budgets, problem.budget_names
    if math.isinf(excess):
        zero = next(k for k in kept if budgets[k] == 0)
        return f"no choice costs nothing of {names[zero]}, whose budget is 0, within the others"
    if excess <= PRECISION:
        given = "; ".join(f"{names[k]} {problem.amount(k, budgets[k])}" for k in kept)
        return f"a mix of options would fit, but no choice of whole options was found ({given})"
    # What holds of budgets rounded down holds of the budgets: costs are whole.
    larger = [
        f"{names[k]} {problem.amount(k, math.floor(budgets[k] * (1 + excess) + 1e-6))}, not "
        f"{problem.amount(k, budgets[k])}"
        for k in kept
    ]
    return f"all of them would have to be {percent_up(excess)} larger ({'; '.join(larger)})"


def _excess(problem: MultiProblem) -> float:
    """Part by which all budgets must grow before a choice fits; of a mix of options, where units are many."""
    free = _free_options(problem)
    if not free.any(axis=1).all():
        return math.inf
    problem = replace(problem, allowed=free)
    if problem.loss.size > MOST_WHOLE:
        return common_excess(problem).excess
    from scipy import sparse
    from scipy.optimize import Bounds, LinearConstraint, milp

    budgets = np.maximum(problem.limits.astype(np.float64), 1.0)
    one_each = sparse.kron(sparse.eye_array(problem.units), np.ones((1, problem.options)))
    used = np.where(free, problem.costs, 0).reshape(len(budgets), -1) / budgets[:, None]
    with without_solver_output():
        result = milp(
            np.append(np.zeros(problem.loss.size), 1.0),
            integrality=np.append(np.ones(problem.loss.size), 0.0),
            bounds=Bounds(
                np.append(np.zeros(problem.loss.size), -1.0), np.append(free.ravel().astype(float), np.inf)
            ),
            constraints=[
                LinearConstraint(sparse.hstack([one_each, np.zeros((problem.units, 1))]), 1, 1),
                LinearConstraint(np.column_stack([used, -np.ones(len(budgets))]), ub=1),
            ],
            options={"node_limit": MOST_NODES, "mip_rel_gap": 0.0},
        )
    if result.x is None:
        return common_excess(problem).excess
    choice = result.x[:-1].reshape(problem.loss.shape).argmax(axis=1)
    return float((problem.costs_of(choice) / budgets).max()) - 1.0


def _subset(problem: MultiProblem, kept: list[int]) -> MultiProblem:
    return replace(
        problem,
        costs=problem.costs[kept],
        budgets=tuple(problem.budgets[k] for k in kept),
        budget_names=tuple(problem.budget_names[k] for k in kept),
        forms=tuple(problem.forms[k] for k in kept) if problem.forms else None,
        scales=tuple(problem.scales[k] for k in kept) if problem.scales else None,
    )


def _free_options(problem: MultiProblem) -> NDArray[np.bool_]:
    """Allowed options that cost nothing of the budgets of 0, which cannot grow by a part."""
    none = [k for k, budget in enumerate(problem.budgets) if budget == 0]
    free: NDArray[np.bool_] = (problem.costs[none] == 0).all(axis=0)
    return free if problem.allowed is None else free & problem.allowed


def percent_up(part: float) -> str:
    """Three digits, rounded up, so that what is said suffices."""
    percent = 100 * part
    digits = max(2 - math.floor(math.log10(percent)), 0) if percent > 1e-9 else 9
    return f"{math.ceil(percent * 10**digits) / 10**digits:.{digits}f}%"
