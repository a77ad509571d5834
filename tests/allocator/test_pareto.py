"""The curve over all budgets: choices above the bound, each the best for its cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.allocator import Problem, lower_frontier, pareto_curve, solve
from apportion.allocator import pareto as pareto_module

Draw = Callable[[int, int, int], Problem]


@pytest.mark.parametrize("exact_units", [2000, 0])
@settings(derandomize=True, deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1))
def test_points_rise_in_cost_fall_in_loss_and_lie_on_or_above_the_bound(
    drawn: Draw, exact_units: int, seed: int
) -> None:
    problem = drawn(seed, 10, 6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pareto_module, "EXACT_UNITS", exact_units)
        curve = pareto_curve(problem, points=20)
    frontier = lower_frontier(problem)
    assert (np.diff(curve.cost) > 0).all()
    assert (np.diff(curve.loss) < 0).all()
    scale = float(np.abs(problem.loss[np.isfinite(problem.loss)]).max(initial=0.0))
    for cost, loss in zip(curve.cost, curve.loss, strict=True):
        # Sums of at most 60 steps of that scale.
        assert loss >= frontier.bound(int(cost)) - 1e-13 * scale


def test_every_point_is_what_solving_at_its_cost_gives() -> None:
    rng = np.random.default_rng(0)
    cost = np.cumsum(rng.integers(1, 100, (12, 5)), axis=1)
    problem = Problem(np.exp(-0.02 * cost) * rng.uniform(1, 9, (12, 1)), cost, 10**6)
    curve = pareto_curve(problem, points=30)
    for at, loss in zip(curve.cost, curve.loss, strict=True):
        assert solve(replace(problem, budget=int(at))).loss == pytest.approx(loss, rel=1e-12)
    assert curve.cost[0] == cost[:, 0].sum()
    assert curve.cost[-1] == cost[:, -1].sum()


def test_the_bound_is_thinned_evenly_and_keeps_its_ends() -> None:
    rng = np.random.default_rng(1)
    cost = np.cumsum(rng.integers(1, 100, (3000, 5)), axis=1)
    problem = Problem(np.exp(-0.02 * cost), cost, 0 + int(cost[:, 0].sum()))
    curve, frontier = pareto_curve(problem, points=50, vertices=100), lower_frontier(problem)
    assert len(curve.bound_cost) <= 100
    assert len(curve.cost) <= 50
    assert (curve.bound_cost[0], curve.bound_cost[-1]) == (frontier.cost[0], frontier.cost[-1])
    assert np.isin(curve.bound_cost, frontier.cost).all()
    # No gap is much wider than an even spread would leave.
    assert np.diff(curve.bound_cost).max() <= 2 * (frontier.cost[-1] - frontier.cost[0]) / 98


def test_a_network_with_one_choice_has_one_point() -> None:
    curve = pareto_curve(Problem(np.array([[0.5]]), np.array([[8]]), 8))
    assert (curve.cost.tolist(), curve.loss.tolist()) == ([8], [0.5])
