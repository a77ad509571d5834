"""Laws of constraints of the user's own: they hold, they cost, and what cannot be met is refused in words."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.allocator import MultiProblem, Status, solve_constrained, solve_multi
from apportion.allocator.quiet import without_solver_output
from apportion.errors import InfeasibleError, InputError

SEEDS = st.integers(0, 2**32 - 1)


def at_most(count: int, option: int) -> Callable[[Any], list[Any]]:
    """At most so many units with an option."""
    return lambda x: [x[:, option].sum() <= count]


def small(seed: int, units: int = 5, options: int = 4) -> MultiProblem:
    """Losses that fall with two costs that are unlike each other."""
    rng = np.random.default_rng(seed)
    costs = np.sort(rng.integers(1, 100, (2, units, options)), axis=2)
    loss = -np.sort(-np.exp(rng.normal(0, 2, (units, options))), axis=1)
    budgets = tuple(int(cost.min(axis=1).sum() * 0.5 + cost.max(axis=1).sum() * 0.5) for cost in costs)
    return MultiProblem(loss, costs, budgets, ("size", "macs"))


def least_loss(problem: MultiProblem, count: int, option: int) -> float:
    best = math.inf
    for options in itertools.product(range(problem.options), repeat=problem.units):
        choice = np.array(options)
        if problem.within(choice) and int((choice == option).sum()) <= count:
            best = min(best, math.fsum(problem.loss_of(choice)))
    return best


@settings(derandomize=True, deadline=None, max_examples=25)
@given(seed=SEEDS, count=st.integers(0, 3))
def test_the_solution_is_what_trying_every_choice_finds(seed: int, count: int) -> None:
    problem = small(seed)
    best = least_loss(problem, count, 3)
    if math.isinf(best):
        with pytest.raises(InfeasibleError, match="constraints"):
            solve_constrained(problem, at_most(count, 3))
        return
    solution = solve_constrained(problem, at_most(count, 3))
    assert int((solution.choice == 3).sum()) <= count
    assert problem.within(solution.choice)
    assert solution.certificate.status is Status.OPTIMAL
    assert solution.certificate.bound <= best <= solution.loss
    assert solution.loss - best <= solution.certificate.gap
    # HiGHS's tolerance, with the objective scaled to 100.
    assert solution.certificate.relative_gap <= 1e-5


def test_no_constraints_give_what_the_dual_and_its_search_give() -> None:
    for seed in range(4):
        problem = small(seed, units=20, options=6)
        free, searched = solve_constrained(problem, lambda x: []), solve_multi(problem)
        assert free.loss == pytest.approx(searched.loss, rel=1e-5)
        for name, price in searched.certificate.shadow_prices.items():
            # Of the relaxation with and without options that fit no choice: alike, not the same.
            assert free.certificate.shadow_prices[name] == pytest.approx(price, rel=1e-5, abs=1e-9)


def test_a_constraint_never_lowers_the_loss() -> None:
    problem = small(3, units=12)
    losses = [solve_constrained(problem, at_most(count, 3)).loss for count in (12, 4, 1)]
    assert losses[0] <= losses[1] * (1 + 1e-6) <= losses[2] * (1 + 2e-6)


def test_forbidden_options_stay_forbidden_whatever_they_hold() -> None:
    problem = small(1)
    allowed = np.ones(problem.loss.shape, np.bool_)
    allowed[:, 2] = False
    loss = np.where(allowed, problem.loss, np.nan)
    masked = MultiProblem(loss, problem.costs, problem.budgets, problem.budget_names, allowed)
    assert not (solve_constrained(masked, at_most(2, 3)).choice == 2).any()


def test_units_can_be_tied() -> None:
    problem = small(2)
    solution = solve_constrained(problem, lambda x: [x[0] == x[1], x[1] == x[4]])
    assert len({int(solution.choice[unit]) for unit in (0, 1, 4)}) == 1


def test_constraints_that_leave_no_choice_are_told_from_budgets_that_are_too_small() -> None:
    problem = small(0)
    with pytest.raises(InfeasibleError, match=r"leave no choice .* however large the budgets"):
        solve_constrained(problem, lambda x: [x[0, 0] + x[0, 1] >= 2])
    with pytest.raises(
        InfeasibleError, match=r"within the budgets 'size' and 'macs': .* at least [\d.]+% larger"
    ):
        solve_constrained(problem, lambda x: [x[:, 3] == 1])


def test_budgets_that_clash_without_any_constraint_are_refused_as_everywhere() -> None:
    costs = np.array([[[1, 3]] * 4, [[3, 1]] * 4])
    problem = MultiProblem(np.zeros((4, 2)), costs, (6, 6), ("size", "macs"))
    with pytest.raises(InfeasibleError, match="'size' and 'macs' can be met one at a time but not together"):
        solve_constrained(problem, lambda x: [])


@pytest.mark.parametrize(
    ("constraints", "message"),
    [
        (lambda x: [x[0, 0] * x[1, 0] <= 0.5], "not all linear in the choice matrix"),
        (lambda x: [(x[0, 0] - x[1, 0]) ** 2 <= 0.5], "not all linear in the choice matrix"),
        (lambda x: [True], "True is a bool, not a constraint"),
    ],
)
def test_what_is_no_linear_constraint_is_refused(
    constraints: Callable[[Any], list[Any]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        solve_constrained(small(0), constraints)


def test_a_search_out_of_time_is_not_called_optimal() -> None:
    rng = np.random.default_rng(7)
    costs = np.sort(rng.integers(1, 2**40, (2, 60, 8)), axis=2)
    budgets = tuple(int(cost.sum() // 8 * 0.8) for cost in costs)
    problem = MultiProblem(-0.1 * costs[0] - 0.05 * costs[1], costs, budgets, ("a", "b"))
    solution = solve_constrained(problem, at_most(50, 7), time_limit_s=2.0)
    assert problem.within(solution.choice)
    assert solution.certificate.status is Status.TIME_LIMIT
    assert solution.certificate.gap > 0


def test_what_compiled_code_prints_is_dropped(
    capfd: pytest.CaptureFixture[str],
) -> None:
    os.write(1, b"before\n")
    with without_solver_output():
        os.write(1, b"inside\n")
    os.write(1, b"after\n")
    printed = capfd.readouterr()
    assert printed.out == "before\nafter\n"
    assert printed.err == ""
