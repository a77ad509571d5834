"""What a problem refuses, and in which words."""

from __future__ import annotations

import numpy as np
import pytest

from apportion.allocator import Problem, cost_range
from apportion.errors import InputError

LOSS = np.array([[3.0, 2.0, 1.0], [6.0, 5.0, 4.0]])
COST = np.array([[1, 2, 3], [10, 20, 30]])
NAMES = {"unit_names": ("conv1", "fc"), "option_names": ("w2", "w3", "w4")}


def with_value(array: np.ndarray, unit: int, option: int, value: float) -> np.ndarray:
    changed = array.copy()
    changed[unit, option] = value
    return changed


@pytest.mark.parametrize(
    ("value", "word"),
    [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite"), (1e200, "1e.200, beyond")],
)
def test_a_score_that_is_no_number_is_named_with_layer_and_option(value: float, word: str) -> None:
    with pytest.raises(InputError, match=rf"layer 'conv1': score is {word}.* for option w3; check that"):
        Problem(with_value(LOSS, 0, 1, value), COST, 40, **NAMES)


def test_units_and_options_without_names_are_numbered() -> None:
    with pytest.raises(InputError, match="unit 1: score is NaN for option 2"):
        Problem(with_value(LOSS, 1, 2, np.nan), COST, 40)


def test_what_forbidden_entries_hold_is_ignored() -> None:
    allowed = np.array([[True, True, False], [True, True, True]])
    cost = with_value(COST, 0, 2, -(2**62))
    problem = Problem(with_value(LOSS, 0, 2, np.nan), cost, 40, allowed)
    assert cost_range(problem) == (11, 32)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cost": -COST}, r"layer 'conv1': cost is -1 bits for option w2; costs are at least 0"),
        ({"cost": COST * 1.0}, r"costs have dtype float64; .* give int64"),
        ({"cost": COST.astype(np.uint64) << np.uint64(60)}, r"greatest cost is .* at most 2\^62 bits"),
        ({"cost": COST * 2**57}, r"greatest costs total more than 2\^62 bits"),
        ({"cost": COST[:, :2]}, r"costs have shape \(2, 2\) and the losses \(2, 3\)"),
        ({"loss": LOSS[0]}, r"losses have shape \(3,\); give \(units, options\)"),
        ({"loss": LOSS[:0], "cost": COST[:0]}, r"losses have shape \(0, 3\).* at least one unit"),
        ({"allowed": np.ones(3, bool)}, r"allowed entries have shape \(3,\)"),
        ({"allowed": np.zeros((2, 3), bool)}, r"layer 'conv1' has no allowed option; allow at least one"),
        ({"unit_names": ("conv1",)}, r"1 unit names are given for 2 units"),
        ({"option_names": ("w2",)}, r"1 option names are given for 3 options"),
        ({"budget": 3.5}, r"the budget is 3\.5; give a whole number of bits"),
    ],
)
def test_a_problem_that_cannot_be_meant_is_refused(fields: dict[str, object], message: str) -> None:
    given = {"loss": LOSS, "cost": COST, "budget": 40, **NAMES, **fields}
    with pytest.raises(InputError, match=message):
        Problem(**given)


def test_cost_range_is_what_the_cheapest_and_the_dearest_choices_cost() -> None:
    assert cost_range(Problem(LOSS, COST, 40)) == (11, 33)
