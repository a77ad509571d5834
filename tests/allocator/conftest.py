"""Instances of the allocation problem, from ordinary to adversarial, and a slow and obvious reference."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from apportion.allocator import MultiProblem, Problem

Draw = Callable[[int, int, int], Problem]
DrawMulti = Callable[[int, int, int, int], MultiProblem]
KINDS = 8


def draw_problem(seed: int, most_units: int, most_options: int) -> Problem:
    """A problem of one of eight kinds, losses scaled by 1e-12 to 1e12, costs up to 2^50 bits."""
    rng = np.random.default_rng(seed)
    units, options = int(rng.integers(1, most_units + 1)), int(rng.integers(1, most_options + 1))
    greatest = int(2 ** rng.integers(1, 51))
    cost = rng.integers(0, greatest + 1, (units, options))
    rank = np.argsort(np.argsort(cost, axis=1), axis=1)
    kind = seed % KINDS
    if kind == 0:  # nothing to do with the cost
        loss = rng.normal(size=(units, options))
    elif kind == 1:  # all choices of one cost are equally good
        loss = -cost.astype(float)
    elif kind == 2:  # all choices are equally good
        loss = np.zeros((units, options))
    elif kind == 3:  # many ties, negative values
        loss = rng.integers(-3, 4, (units, options)).astype(float)
    elif kind == 4:  # two parallel lines: the relaxation misleads
        loss = -0.1 * cost + rng.integers(0, 2, (units, options)) * 0.01 * greatest
    elif kind == 5:  # losses over many decades
        loss = np.exp(rng.normal(0, 8, (units, options)))
    elif kind == 6:  # like a network
        loss = 4.0**-rank * np.exp(rng.normal(0, 3, units))[:, None]
    else:  # units that are all the same
        loss, cost = np.tile(4.0 ** -rank[:1], (units, 1)), np.tile(cost[:1], (units, 1))
    loss = loss * 10.0 ** int(rng.integers(-12, 13))
    allowed = np.ones((units, options), np.bool_)
    if rng.random() < 0.3:
        allowed = rng.random((units, options)) < 0.7
        allowed[np.arange(units), rng.integers(0, options, units)] = True
        # Forbidden entries may hold anything.
        loss = np.where(allowed, loss, rng.choice([np.nan, np.inf, -1e300]))
    least = int(np.where(allowed, cost, greatest).min(axis=1).sum())
    most = int(np.where(allowed, cost, 0).max(axis=1).sum())
    corner = int(rng.integers(0, 12))
    budget = (least, most, most + 5)[corner] if corner < 3 else least + int(rng.random() * (most - least))
    return Problem(loss, cost, budget, allowed if not allowed.all() else None)


def least_loss(problem: Problem) -> float:
    """Try every choice; Python integers for the costs, correctly rounded sums for the losses."""
    allowed = problem.allowed if problem.allowed is not None else np.ones(problem.loss.shape, np.bool_)
    best = math.inf
    for choice in itertools.product(*(np.flatnonzero(row) for row in allowed)):
        pairs = list(enumerate(choice))
        if sum(int(problem.cost[pair]) for pair in pairs) <= problem.budget:
            best = min(best, math.fsum(problem.loss[pair] for pair in pairs))
    return best


def draw_multi(seed: int, most_units: int, most_options: int, count: int) -> MultiProblem:
    """A problem of `draw_problem` with further measures; some of their budgets clash."""
    problem = draw_problem(seed, most_units, most_options)
    rng = np.random.default_rng([seed, 1])
    allowed = np.ones(problem.loss.shape, np.bool_) if problem.allowed is None else problem.allowed
    greatest = int(problem.cost.max()) + 1
    costs, budgets = [problem.cost], [problem.budget]
    for _ in range(1, count):
        unrelated = rng.integers(0, greatest, problem.cost.shape)
        rank = np.argsort(np.argsort(problem.cost, axis=1), axis=1)
        costs.append(
            (
                unrelated,
                greatest - problem.cost,  # dear where the first is cheap
                problem.cost // 3 + unrelated // 10,  # much like the first
                rng.integers(0, 4, problem.cost.shape) * rank,  # small numbers, with zeros
                problem.cost * 0,
            )[int(rng.integers(0, 5))]
        )
        least = int(np.where(allowed, costs[-1], 2**62).min(axis=1).sum())
        most = int(np.where(allowed, costs[-1], 0).max(axis=1).sum())
        budgets.append(least + int(float(rng.choice([0.0, 0.2, 0.5, 0.8, 1.0])) * (most - least)))
    names = tuple(("size", "macs", "latency", "energy")[:count])
    return MultiProblem(problem.loss, np.stack(costs), tuple(budgets), names, problem.allowed)


def least_multi_loss(problem: MultiProblem) -> float:
    """Try every choice within all budgets; infinite where there is none."""
    allowed = problem.allowed if problem.allowed is not None else np.ones(problem.loss.shape, np.bool_)
    best = math.inf
    for choice in itertools.product(*(np.flatnonzero(row) for row in allowed)):
        pairs = list(enumerate(choice))
        totals = [sum(int(cost[pair]) for pair in pairs) for cost in problem.costs]
        if all(total <= budget for total, budget in zip(totals, problem.budgets, strict=True)):
            best = min(best, math.fsum(problem.loss[pair] for pair in pairs))
    return best


@pytest.fixture(scope="session")
def drawn() -> Draw:
    """Seed, most units, most options -> problem."""
    return draw_problem


@pytest.fixture(scope="session")
def brute_force() -> Callable[[Problem], float]:
    """Problem -> least loss over all choices."""
    return least_loss


@pytest.fixture(scope="session")
def drawn_multi() -> DrawMulti:
    """Seed, most units, most options, budgets -> problem."""
    return draw_multi


@pytest.fixture(scope="session")
def brute_force_multi() -> Callable[[MultiProblem], float]:
    """Problem -> least loss over all choices within all budgets, or infinity."""
    return least_multi_loss
