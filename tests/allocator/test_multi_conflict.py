"""What is said of budgets that cannot be met: which of them clash, and by how much."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import linprog

from apportion.allocator import MultiProblem, check_together, solve_multi
from apportion.allocator import conflict as conflict_module
from apportion.allocator.conflict import common_excess, percent_up
from apportion.errors import InfeasibleError


def opposed(size: int, macs: int, energy: int = 10) -> MultiProblem:
    """One unit of size 1 and macs 3 or the other way round, five times; energy is always 1."""
    costs = np.array([[[1, 2, 3]] * 5, [[3, 2, 1]] * 5, [[1, 1, 1]] * 5])
    return MultiProblem(np.zeros((5, 3)), costs, (size, macs, energy), ("size", "macs", "energy"))


def test_a_budget_below_its_least_is_named_with_the_least_and_the_greatest() -> None:
    with pytest.raises(InfeasibleError, match=r"size: the budget of 4 .* least possible, 5 .* useful is 15"):
        solve_multi(opposed(4, 15))


def test_every_budget_that_fails_alone_is_named() -> None:
    with pytest.raises(InfeasibleError, match=r"size: the budget of 4 .*; energy: the budget of 2 "):
        solve_multi(opposed(4, 15, 2))


def test_budgets_that_clash_are_named_without_those_that_do_not_and_how_far_they_are_off() -> None:
    # Size and macs add up to 20 in every choice: 8 and 8 are a quarter short.
    message = (
        r"'size' and 'macs' can be met one at a time .* 25\.0% larger \(size 10, not 8; macs 10, not 8\)"
    )
    with pytest.raises(InfeasibleError, match=message) as refused:
        solve_multi(opposed(8, 8))
    assert "energy" not in str(refused.value)
    assert "size takes 5 to 15; macs takes 5 to 15" in str(refused.value)


def test_what_is_said_to_suffice_suffices_and_less_does_not() -> None:
    solve_multi(opposed(10, 10))
    with pytest.raises(InfeasibleError, match="can be met one at a time"):
        solve_multi(opposed(9, 10))


def test_budgets_that_only_a_mix_of_options_meets_are_a_clash_of_whole_options() -> None:
    costs = np.array([[[0, 10]] * 2, [[10, 0]] * 2])
    problem = MultiProblem(np.zeros((2, 2)), costs, (9, 15), ("size", "macs"))
    assert check_together(problem).excess <= 0
    with pytest.raises(InfeasibleError, match=r"11\.2% larger \(size 10, not 9; macs 16, not 15\)"):
        solve_multi(problem)


def test_a_budget_of_nothing_cannot_grow_and_the_message_says_so() -> None:
    costs = np.array([[[0, 10]], [[10, 0]]])
    problem = MultiProblem(np.zeros((1, 2)), costs, (0, 0), ("size", "macs"))
    with pytest.raises(InfeasibleError, match=r"no choice costs nothing of size, whose budget is 0"):
        solve_multi(problem)


def test_a_unit_whose_every_option_breaks_one_budget_or_another_is_a_clash() -> None:
    costs = np.array([[[1, 9], [1, 1]], [[9, 1], [1, 1]]])
    with pytest.raises(
        InfeasibleError, match=r"'size' and 'macs' .* larger \(size 10, not 5; macs 10, not 5\)"
    ):
        solve_multi(MultiProblem(np.zeros((2, 2)), costs, (5, 5), ("size", "macs")))


def test_the_common_excess_is_that_of_the_linear_programme(
    drawn_multi: Callable[[int, int, int, int], MultiProblem],
) -> None:
    compared = 0
    for seed in range(150):
        problem = drawn_multi(seed, 6, 4, 3)
        if problem.allowed is not None or min(problem.budgets) == 0:
            continue
        units, options = problem.loss.shape
        used = problem.costs.reshape(3, -1) / np.array(problem.budgets, float)[:, None]
        programme = linprog(
            np.append(np.zeros(units * options), 1.0),
            A_ub=np.column_stack([used, -np.ones(3)]),
            b_ub=np.ones(3),
            A_eq=np.column_stack([np.kron(np.eye(units), np.ones(options)), np.zeros(units)]),
            b_eq=np.ones(units),
            bounds=[*[(0, None)] * (units * options), (None, None)],
        )
        clash = common_excess(problem)
        if programme.fun > 1e-6:
            # HiGHS's tolerance, relative to budgets that are 1 here.
            assert clash.excess == pytest.approx(programme.fun, abs=1e-6)
            compared += 1
        else:
            assert clash.excess <= 1e-6
        assert clash.choice is None or problem.within(clash.choice)
    assert compared >= 10


def test_the_set_that_is_named_clashes_and_none_of_its_members_is_idle(
    drawn_multi: Callable[[int, int, int, int], MultiProblem],
    brute_force_multi: Callable[[MultiProblem], float],
) -> None:
    def meets(problem: MultiProblem, names: tuple[str, ...]) -> bool:
        kept = [k for k, name in enumerate(problem.budget_names) if name in names]
        part = replace(
            problem,
            costs=problem.costs[kept],
            budgets=tuple(problem.budgets[k] for k in kept),
            budget_names=names,
        )
        return bool(np.isfinite(brute_force_multi(part)))

    clashes = 0
    for seed in range(120):
        problem = drawn_multi(seed, 4, 3, 4)
        try:
            solve_multi(problem)
        except InfeasibleError as refused:
            said = str(refused).split(" can be met")[0]
            named = tuple(name for name in problem.budget_names if f"'{name}'" in said)
            assert not meets(problem, named)
            assert all(meets(problem, rest) for rest in itertools.combinations(named, len(named) - 1))
            clashes += 1
    assert clashes >= 10


def test_many_units_are_told_how_far_a_mix_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conflict_module, "MOST_WHOLE", 0)
    with pytest.raises(InfeasibleError, match=r"25\.0% larger \(size 10, not 8"):
        solve_multi(opposed(8, 8))


@pytest.mark.parametrize(
    ("part", "text"), [(0.25, "25.0%"), (0.00123401, "0.124%"), (2.0, "200%"), (12.3456, "1235%")]
)
def test_percentages_are_rounded_up(part: float, text: str) -> None:
    assert percent_up(part) == text
