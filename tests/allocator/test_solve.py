"""Laws of the front door: never over budget, never worse than proven, indifferent to units of measure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.allocator import Certificate, Problem, Status, lower_frontier, solve
from apportion.allocator import exact as exact_module
from apportion.allocator.hull import greedy_fill
from apportion.errors import InfeasibleError, InputError

Draw = Callable[[int, int, int], Problem]
SEEDS = st.integers(0, 2**32 - 1)


@settings(derandomize=True, deadline=None, max_examples=400)
@given(seed=SEEDS)
def test_the_solution_is_what_trying_every_choice_finds(
    drawn: Draw, brute_force: Callable[[Problem], float], seed: int
) -> None:
    problem = drawn(seed, 6, 5)
    solution = solve(problem)
    best = brute_force(problem)
    assert solution.certificate.status is Status.OPTIMAL
    assert solution.certificate.bound <= best <= solution.loss
    # Two sums of at most six terms may differ in their rounding.
    assert solution.loss - best <= solution.certificate.gap


def test_two_thousand_instances_stay_within_budget_and_above_their_bound(drawn: Draw) -> None:
    for seed in range(2000):
        problem = drawn(seed, 12, 8)
        solution = solve(problem)
        cost = sum(int(problem.cost[unit, option]) for unit, option in enumerate(solution.choice))
        assert cost == solution.cost <= problem.budget
        assert problem.allowed is None or problem.allowed[np.arange(problem.units), solution.choice].all()
        assert solution.loss == math.fsum(problem.loss_of(solution.choice))
        certificate = solution.certificate
        assert certificate.objective == solution.loss
        assert certificate.bound <= certificate.objective
        assert certificate.status is Status.OPTIMAL


@settings(derandomize=True, deadline=None, max_examples=100)
@given(seed=SEEDS)
def test_relaxation_is_at_most_the_optimum_and_the_optimum_at_most_the_filled_and_the_rounded(
    drawn: Draw, seed: int
) -> None:
    problem = drawn(seed, 16, 8)
    frontier = lower_frontier(problem)
    rounded = frontier.choice(problem.budget)
    filled = greedy_fill(problem, rounded, problem.budget)
    optimum = solve(problem).loss
    # The frontier's sums run over at most 112 steps.
    slack = 120 * np.finfo(float).eps * float(np.abs(np.nan_to_num(problem.loss, posinf=0, neginf=0)).sum())
    assert frontier.bound(problem.budget) <= optimum + slack
    assert optimum <= math.fsum(problem.loss_of(filled)) <= math.fsum(problem.loss_of(rounded))
    assert int(problem.cost_of(filled).sum()) <= problem.budget


@settings(derandomize=True, deadline=None, max_examples=100)
@given(seed=SEEDS)
def test_solving_again_at_the_cost_of_the_solution_gives_its_loss(drawn: Draw, seed: int) -> None:
    problem = drawn(seed, 20, 8)
    solution = solve(problem)
    again = solve(replace(problem, budget=solution.cost))
    assert again.cost <= solution.cost
    assert again.loss <= solution.loss + solution.certificate.gap
    assert solution.loss <= again.loss + again.certificate.gap + solution.certificate.gap


@settings(derandomize=True, deadline=None, max_examples=100)
@given(seed=SEEDS, exponent=st.integers(-30, 30), factor=st.integers(1, 7))
def test_units_of_loss_and_of_cost_do_not_change_the_choice(
    drawn: Draw, seed: int, exponent: int, factor: int
) -> None:
    problem = drawn(seed, 12, 6)
    # Powers of two scale floats exactly; any whole number scales costs exactly.
    scaled = replace(problem, loss=np.ldexp(problem.loss, exponent))
    np.testing.assert_array_equal(solve(scaled).choice, solve(problem).choice)
    dearer = solve(replace(problem, cost=problem.cost * factor, budget=problem.budget * factor))
    assert dearer.cost <= problem.budget * factor
    tolerance = dearer.certificate.gap + solve(problem).certificate.gap
    assert dearer.loss == pytest.approx(solve(problem).loss, rel=0, abs=tolerance)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(seed=SEEDS)
def test_more_budget_never_loses_more(drawn: Draw, seed: int) -> None:
    problem = drawn(seed, 15, 6)
    losses = [solve(replace(problem, budget=problem.budget + extra)) for extra in (0, 1, 1000, 10**15)]
    for small, large in pairwise(losses):
        assert large.loss <= small.loss + small.certificate.gap + large.certificate.gap


def network_like(units: int, options: int, seed: int) -> Problem:
    """Layers of 500 to 3,000,000 weights with 16-bit steps; losses that fall fourfold a bit, with noise."""
    rng = np.random.default_rng(seed)
    weights = np.exp(rng.uniform(np.log(500), np.log(3e6), units)).astype(np.int64)
    channels = np.maximum(8, np.sqrt(weights).astype(np.int64) // 4)
    kinds = [(points, bits) for points in (1, 2, 3, 4, 5) for bits in range(2, 9)][:options]
    cost = np.stack([points * (bits * weights + 16 * channels) for points, bits in kinds], axis=1)
    depth = np.array([points * bits for points, bits in kinds])
    noise = np.exp(rng.normal(0, 0.3, cost.shape))
    loss = np.exp(rng.normal(-2, 2, units))[:, None] * 4.0 ** (2.0 - depth) * noise
    return Problem(loss, cost, int(rng.uniform(2.5, 6.0) * weights.sum()))


@pytest.mark.parametrize("units", [20, 50, 150, 2000])
@pytest.mark.parametrize("options", [7, 12, 30])
def test_network_like_problems_end_with_a_proof_far_below_one_in_a_million(units: int, options: int) -> None:
    for seed in range(5):
        certificate = solve(network_like(units, options, seed)).certificate
        assert certificate.status is Status.OPTIMAL
        assert certificate.relative_gap <= 1e-9


def test_fifty_thousand_channels_are_solved_to_a_proof() -> None:
    rng = np.random.default_rng(5)
    fan_in = rng.integers(9, 4000, 50_000)
    cost = np.stack([bits * fan_in + 16 for bits in range(2, 10)], axis=1)
    noise = np.exp(rng.normal(0, 0.3, cost.shape))
    loss = np.exp(rng.normal(0, 2, 50_000))[:, None] * 4.0 ** -np.arange(8.0) * noise
    solution = solve(Problem(loss, cost, int(4.2 * fan_in.sum())))
    assert solution.certificate.status is Status.OPTIMAL
    assert solution.certificate.relative_gap <= 1e-12


def subset_sum(units: int = 30) -> Problem:
    """Loss is minus the cost, costs near 2^40: no price rules anything out, and exact fits are rare."""
    rng = np.random.default_rng(7)
    cost = np.sort(rng.integers(1, 2**40, (units, 8)), axis=1)
    return Problem(-0.1 * cost, cost, int(cost.sum() // 8 * 0.8))


def test_a_search_that_meets_its_memory_limit_reports_a_gap_and_no_optimum(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exact_module, "MAX_STATES", 1000)
    monkeypatch.setattr(exact_module, "THINNED_STATES", 100)
    problem = subset_sum()
    solution = solve(problem)
    assert solution.cost <= problem.budget
    assert solution.certificate.status is Status.STATE_LIMIT
    assert 0 < solution.certificate.relative_gap < 1e-5
    assert solution.certificate.bound <= -0.1 * problem.budget * (1 - 1e-9)


def test_lists_from_both_ends_meet_where_one_would_be_too_long(
    monkeypatch: pytest.MonkeyPatch, brute_force: Callable[[Problem], float]
) -> None:
    whole = subset_sum(units=7)
    problem = Problem(whole.loss[:, :5], whole.cost[:, :5], int(whole.cost[:, :5].sum() // 5))
    monkeypatch.setattr(exact_module, "MAX_STATES", 200)
    solution = solve(problem)
    assert solution.certificate.status is Status.OPTIMAL
    assert solution.loss - brute_force(problem) <= solution.certificate.gap


def test_a_search_that_remembers_too_much_stops_with_its_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_module, "MAX_RECORDS", 1000)
    certificate = solve(subset_sum()).certificate
    assert certificate.status is Status.STATE_LIMIT
    assert certificate.gap > 0


def test_a_search_out_of_time_returns_a_choice_within_the_budget_that_is_not_called_optimal() -> None:
    problem = subset_sum()
    solution = solve(problem, time_limit_s=1e-9)
    assert solution.cost <= problem.budget
    assert solution.certificate.status is Status.TIME_LIMIT
    assert solution.certificate.gap > 0


@pytest.mark.parametrize("seconds", [0, -1.0, math.nan])
def test_a_time_limit_is_above_zero(seconds: float) -> None:
    with pytest.raises(InputError, match=r"time limit is .* give more than 0 s"):
        solve(subset_sum(), time_limit_s=seconds)


def test_a_budget_below_the_least_names_the_least_and_the_greatest() -> None:
    problem = Problem(np.zeros((2, 2)), np.array([[10, 2000], [20, 3000]]), 29)
    with pytest.raises(InfeasibleError, match=r"budget of 29 bits .* least possible, 30 bits .* 5,000 bits"):
        solve(problem)


def test_a_budget_beyond_all_costs_buys_the_least_loss_at_no_price() -> None:
    problem = Problem(np.array([[3.0, 1.0, 2.0]]), np.array([[1, 2, 3]]), 10**30)
    solution = solve(problem)
    assert solution.choice.tolist() == [1]
    assert solution.certificate == Certificate(
        objective=1.0,
        bound=1.0,
        gap=0.0,
        relative_gap=0.0,
        status=Status.OPTIMAL,
        solver=solution.certificate.solver,
        shadow_prices={"size": 0.0},
    )
