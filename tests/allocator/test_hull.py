"""The frontier is the lower convex hull of all choices, and its vertices are choices."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from apportion.allocator import Problem, lower_frontier
from apportion.allocator import hull as hull_module
from apportion.errors import InfeasibleError

Draw = Callable[[int, int, int], Problem]
SEEDS = st.integers(0, 2**32 - 1)


def small_problem(seed: int) -> Problem:
    rng = np.random.default_rng(seed)
    shape = int(rng.integers(1, 7)), int(rng.integers(1, 6))
    cost = rng.integers(0, 50, shape)
    return Problem(rng.normal(size=shape), cost, int(cost.min(axis=1).sum()))


@settings(derandomize=True, deadline=None, max_examples=50)
@given(seed=SEEDS, share=st.floats(0, 1))
def test_the_bound_is_the_optimum_of_the_linear_programme(seed: int, share: float) -> None:
    problem = small_problem(seed)
    units, options = problem.loss.shape
    frontier = lower_frontier(problem)
    budget = int(problem.budget + share * (int(problem.cost.max(axis=1).sum()) - problem.budget))
    reference = linprog(
        problem.loss.ravel(),
        A_ub=problem.cost.reshape(1, -1),
        b_ub=[budget],
        A_eq=np.kron(np.eye(units), np.ones(options)),
        b_eq=np.ones(units),
    )
    # The tolerance of the reference solver.
    assert frontier.bound(budget) == pytest.approx(reference.fun, rel=1e-7, abs=1e-7)
    # Its dual value lies between the slopes left and right of the budget, which differ at a vertex.
    if budget > problem.budget:
        low, high = frontier.shadow_price(budget), frontier.shadow_price(budget - 1)
        assert low - 1e-7 <= -reference.ineqlin.marginals[0] <= high + 1e-7


@settings(derandomize=True, deadline=None, max_examples=100)
@given(seed=SEEDS)
def test_no_choice_lies_below_the_frontier(seed: int) -> None:
    problem = small_problem(seed)
    frontier = lower_frontier(problem)
    for choice in itertools.product(range(problem.options), repeat=problem.units):
        cost = int(problem.cost_of(np.array(choice)).sum())
        loss = math.fsum(problem.loss_of(np.array(choice)))
        # A few roundings of values near 1.
        assert frontier.bound(cost) <= loss + 1e-13


@settings(derandomize=True, deadline=None, max_examples=100)
@given(seed=SEEDS)
def test_every_vertex_is_a_choice_of_its_cost_and_loss(drawn: Draw, seed: int) -> None:
    problem = drawn(seed, 12, 8)
    frontier = lower_frontier(problem)
    assert (np.diff(frontier.cost) > 0).all()
    assert (np.diff(frontier.loss) <= 0).all()
    assert (np.diff(frontier.slope) >= 0).all()
    assert (frontier.slope < 0).all()
    for vertex, cost in enumerate(frontier.cost):
        choice = frontier.choice(int(cost))
        assert int(problem.cost_of(choice).sum()) == cost
        losses = problem.loss_of(choice)
        # Sums of at most 96 steps whose sizes are those of the losses on the way.
        scale = float(np.abs(problem.loss_of(frontier.start)).sum() + np.abs(losses).sum())
        assert frontier.loss[vertex] == pytest.approx(math.fsum(losses), rel=1e-12, abs=1e-14 * scale)


def test_units_beyond_one_chunk_give_the_same_frontier(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    problem = Problem(rng.normal(size=(50, 6)), rng.integers(0, 100, (50, 6)), 5000)
    whole = lower_frontier(problem)
    monkeypatch.setattr(hull_module, "CHUNK_UNITS", 7)
    parts = lower_frontier(problem)
    for name in ("cost", "loss", "slope", "start", "unit", "option"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


def test_a_budget_below_the_frontier_is_infeasible() -> None:
    frontier = lower_frontier(Problem(np.zeros((1, 1)), np.array([[1000]]), 1000))
    with pytest.raises(InfeasibleError, match="budget of 999 bits is below the least possible, 1,000 bits"):
        frontier.bound(999)


def test_options_on_one_line_are_all_vertices_or_passed_over_without_harm() -> None:
    problem = Problem(np.array([[3.0, 2.0, 1.0, 0.0]]), np.array([[0, 1, 2, 3]]), 0)
    frontier = lower_frontier(problem)
    assert [frontier.bound(budget) for budget in range(4)] == [3.0, 2.0, 1.0, 0.0]
    assert frontier.shadow_price(1) == 1.0
    assert frontier.shadow_price(3) == 0.0
