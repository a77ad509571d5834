"""What a problem of several budgets refuses, in which words, and how it is tightened."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from apportion.allocator import MultiProblem, Problem
from apportion.allocator.multi import cost_ranges, tightened
from apportion.errors import InputError

LOSS = np.array([[3.0, 2.0, 1.0], [6.0, 5.0, 4.0]])
COSTS = np.array([[[1, 2, 3], [10, 20, 30]], [[7, 8, 9], [5, 5, 5]]])
GIVEN = {
    "loss": LOSS,
    "costs": COSTS,
    "budgets": (40, 14),
    "budget_names": ("size", "macs"),
    "unit_names": ("conv1", "fc"),
    "option_names": ("w2", "w3", "w4"),
}


def with_value(array: np.ndarray, index: tuple[int, ...], value: float) -> np.ndarray:
    changed = array.copy()
    changed[index] = value
    return changed


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss": with_value(LOSS, (0, 1), np.nan)}, r"layer 'conv1': score is NaN for option w3"),
        ({"loss": with_value(LOSS, (1, 2), -np.inf)}, r"layer 'fc': score is infinite for option w4"),
        ({"costs": -COSTS}, r"layer 'conv1': cost is -1 of 'size' for option w2; costs are at least 0"),
        ({"costs": with_value(COSTS, (1, 1, 0), -3)}, r"layer 'fc': cost is -3 of 'macs' for option w2"),
        ({"costs": COSTS * 1.0}, r"costs have dtype float64; .* give int64"),
        ({"costs": COSTS[:, :, :2]}, r"costs have shape \(2, 2\) and the losses \(2, 3\)"),
        ({"costs": COSTS[:1]}, r"2 budgets, 2 names of budgets and costs of shape \(1, 2, 3\)"),
        ({"budgets": (40,)}, r"1 budgets, 2 names of budgets .* one budget, one name"),
        ({"budgets": (), "budget_names": (), "costs": COSTS[:0]}, r"0 budgets, 0 names"),
        ({"budgets": (40, 3.5)}, r"the budget is 3.5; give a whole number of 'macs'"),
        ({"budget_names": ("size", "size")}, r"two budgets are named 'size'"),
        ({"costs": COSTS * 2**57}, r"greatest costs total more than 2\^62 of 'size'"),
        ({"allowed": np.zeros((2, 3), bool)}, r"layer 'conv1' has no allowed option; allow at least one"),
    ],
)
def test_a_problem_that_cannot_be_meant_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MultiProblem(**{**GIVEN, **fields})


def test_one_of_the_budgets_alone_is_a_problem_of_its_own() -> None:
    single = MultiProblem(**GIVEN).single(1)
    assert isinstance(single, Problem)
    assert single.budget == 14
    np.testing.assert_array_equal(single.cost, COSTS[1])
    assert single.unit_name(1) == "layer 'fc'"


def test_cost_ranges_are_what_the_cheapest_and_the_dearest_choices_cost() -> None:
    assert cost_ranges(MultiProblem(**GIVEN)) == ((11, 33), (12, 14))


def test_tightening_keeps_every_choice_within_the_budgets_and_no_option_that_cannot_be_part_of_one(
    drawn_multi: Callable[[int, int, int, int], MultiProblem],
) -> None:
    for seed in range(200):
        problem = drawn_multi(seed, 4, 4, 2)
        try:
            tight = tightened(problem)
        except InputError:
            # A unit is left without options; `check_together` asks before.
            continue
        used = np.zeros(problem.loss.shape, np.bool_)
        allowed = np.ones(problem.loss.shape, np.bool_) if problem.allowed is None else problem.allowed
        for options in itertools.product(*(np.flatnonzero(row) for row in allowed)):
            choice = np.array(options)
            if problem.within(choice):
                used[np.arange(len(choice)), choice] = True
                assert tight.within(choice)
                np.testing.assert_array_equal(tight.costs_of(choice), problem.costs_of(choice))
        assert tight.allowed is None or not (used & ~tight.allowed).any()
        assert np.isfinite(tight.loss).all()
