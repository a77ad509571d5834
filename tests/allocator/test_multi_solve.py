"""Laws of several budgets: never over any, never worse than proven, indifferent to names and units."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.optimize import linprog

from apportion.allocator import MultiProblem, Status, solve, solve_multi
from apportion.allocator import branch as branch_module
from apportion.allocator import solve_multi as solve_multi_function
from apportion.allocator.dual import choose_at, cut_to_prices
from apportion.allocator.multi import tightened
from apportion.allocator.residue import sift
from apportion.allocator.solve_multi import good_choice
from apportion.errors import InfeasibleError, InputError

DrawMulti = Callable[[int, int, int, int], MultiProblem]
BruteForce = Callable[[MultiProblem], float]
SEEDS = st.integers(0, 2**32 - 1)
COUNTS = st.integers(2, 4)


def network_like(units: int, count: int, seed: int) -> MultiProblem:
    """Channels of 60 layers: size, operations that vary by layer, and a latency with steps in it."""
    rng = np.random.default_rng(seed)
    layer = rng.integers(0, 60, units)
    fan_in = np.exp(rng.uniform(np.log(9), np.log(4000), 60)).astype(np.int64)[layer][:, None]
    positions = np.exp(rng.uniform(0, 5, 60)).astype(np.int64)[layer][:, None]
    bits = np.arange(2, 10)
    steps = np.array([1, 1, 1, 2, 2, 2, 2, 3])
    costs = np.stack([bits * fan_in + 19, bits * fan_in * positions, steps * fan_in * 7 + positions])[:count]
    noise = np.exp(rng.normal(0, 0.3, (units, 8)))
    loss = np.exp(rng.normal(-8, 2, units))[:, None] * 4.0 ** (2.0 - bits) * noise
    least, most = costs.min(axis=2).sum(axis=1), costs.max(axis=2).sum(axis=1)
    budgets = [
        int(low + (high - low) * part) for low, high, part in zip(least, most, (0.3, 0.25, 0.5), strict=False)
    ]
    return MultiProblem(loss, costs, tuple(budgets), ("size", "bops", "latency")[:count])


def relaxed_loss(problem: MultiProblem) -> float:
    """Optimum of the linear relaxation by HiGHS, losses scaled to where its tolerances do no harm."""
    units, options = problem.loss.shape
    scale = 1000 / problem.loss.max(axis=1).sum()
    result = linprog(
        scale * problem.loss.ravel(),
        A_eq=sparse.kron(sparse.eye_array(units), np.ones((1, options)), format="csr"),
        b_eq=np.ones(units),
        A_ub=np.stack(
            [cost.ravel() / budget for cost, budget in zip(problem.costs, problem.budgets, strict=True)]
        ),
        b_ub=np.ones(len(problem.budgets)),
        options={"dual_feasibility_tolerance": 1e-10, "primal_feasibility_tolerance": 1e-10},
    )
    return float(result.fun) / scale


@settings(derandomize=True, deadline=None, max_examples=200)
@given(seed=SEEDS, count=COUNTS)
def test_the_solution_is_what_trying_every_choice_finds(
    drawn_multi: DrawMulti, brute_force_multi: BruteForce, seed: int, count: int
) -> None:
    problem = drawn_multi(seed, 5, 4, count)
    best = brute_force_multi(problem)
    if math.isinf(best):
        with pytest.raises(InfeasibleError, match="budget"):
            solve_multi(problem)
        return
    solution = solve_multi(problem)
    certificate = solution.certificate
    assert certificate.status is Status.OPTIMAL
    assert certificate.bound <= best <= solution.loss
    # HiGHS's bound is trusted to seven digits of the gap of the relaxation, which is at most a few losses.
    assert solution.loss - best <= certificate.gap
    assert certificate.relative_gap <= 1e-6


@settings(derandomize=True, deadline=None, max_examples=30)
@given(seed=SEEDS, count=COUNTS)
def test_no_budget_is_ever_exceeded_and_forbidden_options_are_never_taken(
    drawn_multi: DrawMulti, seed: int, count: int
) -> None:
    problem = drawn_multi(seed, 14, 8, count)
    try:
        solution = solve_multi(problem, time_limit_s=0.2)
    except InfeasibleError:
        return
    totals = [
        sum(int(cost[unit, option]) for unit, option in enumerate(solution.choice)) for cost in problem.costs
    ]
    assert tuple(totals) == solution.costs
    assert all(total <= budget for total, budget in zip(totals, problem.budgets, strict=True))
    assert problem.allowed is None or problem.allowed[np.arange(problem.units), solution.choice].all()
    assert solution.loss == solution.certificate.objective == math.fsum(problem.loss_of(solution.choice))
    assert solution.certificate.bound <= solution.loss


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("units", [5, 40, 400])
def test_the_dual_is_the_optimum_of_the_linear_relaxation(units: int, count: int) -> None:
    for seed in range(3):
        problem = network_like(units, count, seed)
        tight = tightened(problem)
        bound = sift(tight, cut_to_prices(tight)).priced.value
        # The relaxation of the tightened problem may lie above that of the problem, never below.
        loose = sift(problem, cut_to_prices(problem)).priced.value
        assert loose == pytest.approx(relaxed_loss(problem), rel=1e-7)
        assert bound >= loose * (1 - 1e-9)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(seed=SEEDS, count=COUNTS, exponents=st.lists(st.floats(-3, 3), min_size=4, max_size=4))
def test_no_prices_at_all_give_a_bound_above_the_optimum(
    drawn_multi: DrawMulti, brute_force_multi: BruteForce, seed: int, count: int, exponents: list[float]
) -> None:
    problem = drawn_multi(seed, 4, 4, count)
    best = brute_force_multi(problem)
    try:
        tight = tightened(problem)
    except InputError:
        return
    steep = np.abs(tight.loss).max() / np.maximum(tight.costs.max(axis=(1, 2)), 1)
    found = choose_at(tight, steep * 10.0 ** np.array(exponents[:count]))
    # Float sums of at most nine terms, each no larger than the magnitude.
    magnitude = np.abs(tight.loss).sum() + float(found.prices @ np.abs(tight.costs).sum(axis=(1, 2)))
    assert found.value <= best + 1e-14 * (magnitude + float(found.prices @ np.array(tight.budgets, float)))


def test_network_like_layers_end_with_a_proof_and_a_tiny_gap() -> None:
    for units, count in ((20, 2), (20, 3), (60, 2), (60, 3)):
        certificate = solve_multi(network_like(units, count, 1)).certificate
        assert certificate.status is Status.OPTIMAL
        assert certificate.relative_gap <= 1e-6


def test_thirty_thousand_channels_meet_three_budgets_within_a_millionth_of_the_bound() -> None:
    problem = network_like(30_000, 3, 2)
    solution = solve_multi(problem)
    assert problem.within(solution.choice)
    # The others have less of what binds; at this size rounding loses next to nothing.
    assert solution.certificate.relative_gap <= 1e-6
    assert max(solution.certificate.shadow_prices.values()) > 0


def test_a_single_budget_is_solved_as_before_and_priced_by_its_name() -> None:
    problem = replace(network_like(30, 1, 0), budget_names=("energy",))
    multi, single = solve_multi(problem), solve(problem.single(0))
    np.testing.assert_array_equal(multi.choice, single.choice)
    assert multi.costs == (single.cost,)
    assert multi.certificate.shadow_prices == {"energy": single.certificate.shadow_prices["size"]}


def test_a_budget_that_does_not_bind_costs_nothing_and_changes_nothing() -> None:
    problem = network_like(25, 2, 3)
    loose = replace(problem, budgets=(problem.budgets[0], 10**18))
    solution, alone = solve_multi(loose), solve(loose.single(0))
    assert solution.certificate.shadow_prices["bops"] == 0
    assert solution.loss == pytest.approx(alone.loss, rel=1e-9)
    # The same dual, by two algorithms.
    price = alone.certificate.shadow_prices["size"]
    assert solution.certificate.shadow_prices["size"] == pytest.approx(price, rel=1e-6)


def test_the_order_of_the_budgets_does_not_matter() -> None:
    problem = network_like(40, 3, 4)
    order = [2, 0, 1]
    turned = replace(
        problem,
        costs=problem.costs[order],
        budgets=tuple(problem.budgets[k] for k in order),
        budget_names=tuple(problem.budget_names[k] for k in order),
    )
    first, second = solve_multi(problem), solve_multi(turned)
    assert second.loss == pytest.approx(first.loss, rel=1e-6)
    # Where the dual has one optimum its prices are the same, to the precision of the linear programme.
    for name, price in first.certificate.shadow_prices.items():
        assert second.certificate.shadow_prices[name] == pytest.approx(price, rel=1e-5, abs=1e-20)


def test_a_measure_in_smaller_units_has_a_smaller_price() -> None:
    problem = network_like(40, 2, 5)
    scaled = replace(
        problem,
        costs=problem.costs * np.array([1, 1000])[:, None, None],
        budgets=(problem.budgets[0], problem.budgets[1] * 1000),
    )
    first, second = solve_multi(problem).certificate, solve_multi(scaled).certificate
    assert second.objective == pytest.approx(first.objective, rel=1e-6)
    assert first.shadow_prices["bops"] > 0
    assert second.shadow_prices["bops"] * 1000 == pytest.approx(first.shadow_prices["bops"], rel=1e-5)
    assert second.shadow_prices["size"] == pytest.approx(first.shadow_prices["size"], rel=1e-5)


def test_losses_in_other_units_do_not_change_the_choice() -> None:
    problem = network_like(30, 2, 6)
    for exponent in (-40, 40):
        scaled = solve_multi(replace(problem, loss=np.ldexp(problem.loss, exponent)))
        assert math.ldexp(scaled.loss, -exponent) == pytest.approx(solve_multi(problem).loss, rel=1e-6)


def test_equal_scores_leave_any_choice_within_the_budgets_the_best() -> None:
    problem = network_like(50, 3, 7)
    solution = solve_multi(replace(problem, loss=np.full(problem.loss.shape, 0.25)))
    assert solution.loss == solution.certificate.bound == 12.5
    assert solution.certificate.status is Status.OPTIMAL
    assert problem.within(solution.choice)
    assert set(solution.certificate.shadow_prices.values()) == {0.0}


def test_budgets_that_every_option_meets_buy_the_least_loss() -> None:
    problem = replace(network_like(50, 3, 8), budgets=(10**15, 10**15, 10**30))
    solution = solve_multi(problem)
    np.testing.assert_array_equal(solution.choice, problem.loss.argmin(axis=1))
    assert solution.certificate.gap == 0
    assert solution.certificate.status is Status.OPTIMAL


def test_budgets_at_the_least_leave_the_cheapest_choice() -> None:
    problem = network_like(50, 2, 9)
    least = tuple(int(total) for total in problem.costs.min(axis=2).sum(axis=1))
    solution = solve_multi(replace(problem, budgets=least))
    assert solution.costs == least
    assert solution.certificate.status is Status.OPTIMAL


def hard(units: int = 40) -> MultiProblem:
    """Losses that are minus the costs: no price rules anything out, and exact fits are rare."""
    rng = np.random.default_rng(7)
    costs = np.sort(rng.integers(1, 2**40, (2, units, 8)), axis=2)
    budgets = tuple(int(cost.sum() // 8 * 0.8) for cost in costs)
    return MultiProblem(-0.1 * costs[0] - 0.05 * costs[1], costs, budgets, ("a", "b"))


@pytest.mark.parametrize("seconds", [1e-9, 0.3])
def test_a_search_out_of_time_returns_a_choice_within_the_budgets_that_is_not_called_optimal(
    seconds: float,
) -> None:
    problem = hard()
    solution = solve_multi(problem, time_limit_s=seconds)
    assert problem.within(solution.choice)
    assert solution.certificate.status is Status.TIME_LIMIT
    assert 0 < solution.certificate.relative_gap < 0.01


def test_a_search_out_of_nodes_is_not_called_optimal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(branch_module.branch.__kwdefaults__, "most_nodes", 1)
    certificate = solve_multi(hard()).certificate
    assert certificate.status is Status.SEARCH_LIMIT
    assert certificate.gap > 0


@pytest.mark.parametrize("seconds", [0, -1.0, math.nan])
def test_a_time_limit_is_above_zero(seconds: float) -> None:
    with pytest.raises(InputError, match=r"time limit is .* give more than 0 s"):
        solve_multi_function(hard(), time_limit_s=seconds)


def test_a_budget_that_nothing_exceeds_has_no_price() -> None:
    loss = np.array([[4.0, 1.0], [3.0, 1.0]])
    costs = np.array([[[1, 2], [1, 2]], [[5, 5], [5, 5]]])
    prices = solve_multi(MultiProblem(loss, costs, (3, 40), ("size", "macs"))).certificate.shadow_prices
    assert prices["macs"] == 0
    assert prices["size"] > 0


@settings(derandomize=True, deadline=None, max_examples=15)
@given(SEEDS, st.integers(2, 3), st.sampled_from([None, 0.0, 0.1, 10.0]))
def test_a_good_choice_keeps_the_budgets_whatever_prices_it_starts_from(
    seed: int, count: int, off: float | None
) -> None:
    problem = network_like(60, count, seed)
    solution = solve_multi(problem)
    best = sift(tightened(problem), cut_to_prices(tightened(problem))).priced
    choice, prices = good_choice(problem, solution.choice, None if off is None else off * best.prices)
    assert problem.within(choice)
    assert float(problem.loss_of(choice).sum()) >= solution.certificate.bound * (1 - 1e-9)
    # Sifting ends at the relaxation's own optimum.
    assert choose_at(problem, prices).value == pytest.approx(best.value, rel=1e-8)
