"""The front door: the best choice within a budget, with its certificate."""

from __future__ import annotations

import time

from ..errors import InputError
from .core import reduce_problem
from .exact import search_core
from .hull import Frontier, greedy_fill, lower_frontier
from .problem import Problem, check_budget, cost_range
from .solution import Certificate, Solution

__all__ = ["deadline_after", "solve", "solve_on"]

SOLVER = "convex hull and core search"
SIZE = "size"
"""Name of the only budget of a `Problem`."""


def solve(problem: Problem, *, time_limit_s: float | None = None) -> Solution:
    """Choose one option for every unit: least total loss within the budget.

    The linear relaxation gives a price per bit and a choice within the budget; what the price does not rule
    out is searched completely. For layers (tens to thousands of units) and for channels (up to millions) this
    most often ends with a proof of optimality; where it would take too much memory or time, the best choice
    found is returned with the gap that is proven.

    Parameters
    ----------
    problem : Problem
        Losses, costs and budget.
    time_limit_s : float, optional
        Seconds after which the search stops with what it has. The relaxation itself is not interrupted.

    Raises
    ------
    InfeasibleError
        The budget is below the least total cost.
    InputError
        A time limit that is not above 0.
    """
    deadline = deadline_after(time_limit_s)
    check_budget(problem)
    return solve_on(lower_frontier(problem), problem, deadline=deadline)


def deadline_after(time_limit_s: float | None) -> float | None:
    """Time on `time.monotonic` that is so many seconds from now.

    Raises
    ------
    InputError
        A time limit that is not above 0.
    """
    if time_limit_s is None:
        return None
    if not time_limit_s > 0:
        raise InputError(f"the time limit is {time_limit_s} s; give more than 0 s, or none")
    return time.monotonic() + time_limit_s


def solve_on(frontier: Frontier, problem: Problem, *, deadline: float | None = None) -> Solution:
    """`solve` with the problem's frontier at hand, which is the same for every budget.

    Parameters
    ----------
    frontier : Frontier
        `lower_frontier` of the problem.
    problem : Problem
        With a budget that is at least the least total cost.
    deadline : float, optional
        Time on `time.monotonic` at which the search stops.
    """
    budget = min(problem.budget, cost_range(problem).greatest)
    rounded_down = frontier.choice(budget)
    filled = greedy_fill(problem, rounded_down, budget)
    price = frontier.shadow_price(budget)
    core = reduce_problem(problem, price, filled, rounded_down, budget)
    found = search_core(core, deadline=deadline)
    choice = filled if found.choice is None else found.choice
    cost = int(problem.cost_of(choice).sum())
    if cost > problem.budget:
        raise RuntimeError(f"a choice of {cost} bits left the solver at a budget of {problem.budget}")
    certificate = Certificate.from_gap(
        problem.loss_of(choice), found.gap, found.status, SOLVER, {SIZE: price}
    )
    return Solution(choice, certificate.objective, cost, certificate)
