"""Layers of one option store no option codes: plans use what that saves, and proofs count with it."""

from __future__ import annotations

from itertools import product
from math import ceil
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from apportion.allocator import CostTable, Status, average_budget, pareto_curve
from apportion.errors import InfeasibleError
from apportion.network import Data, capture
from apportion.quantizer import parse_options, stored_bits
from apportion.sensitivity import (
    Objective,
    Profile,
    ProfileArrays,
    joint_problem,
    measure_profile,
    pose,
    pose_task,
    solve_plan,
)

OPTIONS = parse_options("w2,w4,w7")
ROUNDING = 1e-9


class Small(NamedTuple):
    """A profile of seven channels in two layers, and all their plans."""

    profile: Profile
    arrays: ProfileArrays
    choices: NDArray[np.intp]
    """(plans, channels)"""
    bits: NDArray[np.int64]


@pytest.fixture(scope="module")
def small() -> Small:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(9, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    data = Data(torch.randn(64, 9), None, "noise")
    profile, arrays = measure_profile(capture(module, data.inputs[:2]), data, OPTIONS)
    assert arrays is not None
    choices = np.array(list(product(range(len(OPTIONS)), repeat=7)))
    bits = [
        sum(
            stored_bits([OPTIONS[column] for column in part], fan_in, len(OPTIONS))
            for part, fan_in in ((row[:4], 9), (row[4:], 4))
        )
        for row in choices
    ]
    return Small(profile, arrays, choices, np.array(bits))


def budgets_of(small: Small) -> list[int]:
    return np.unique(np.quantile(small.bits, np.linspace(0, 0.9, 25), method="nearest")).tolist()


def test_plans_per_channel_are_the_best_of_all(small: Small) -> None:
    loss = small.arrays.channel_loss.numpy()[np.arange(7), small.choices].sum(1)
    alike = 0
    for bits in budgets_of(small):
        budget = average_budget(bits, small.profile.weight_count)
        plan = solve_plan(small.profile, small.arrays, budget, "channel", objective=Objective.ADDITIVE)
        assert plan.certificate is not None
        least = loss[small.bits <= bits].min()
        assert plan.certificate.status is Status.OPTIMAL
        assert plan.predicted_loss == pytest.approx(least, rel=ROUNDING)
        assert plan.certificate.bound <= least * (1 + ROUNDING)
        alike += sum(layer.option is not None for layer in plan.layers)
    assert alike > 3


def test_budgets_that_clash_are_not_blamed_on_option_codes(small: Small) -> None:
    profile, arrays = small.profile, small.arrays
    first, last = (layer.name for layer in profile.layers)
    # Only the last layer gets faster with more bits; its 3 channels have 4 weights each.
    table = CostTable(
        "latency", {first: dict.fromkeys(profile.options, 1.0), last: {"w2": 3, "w4": 0, "w7": 3}}
    )
    least = int(small.bits.min())
    for more, reason in (
        (0, "'size' and 'latency' can be met one at a time"),
        (8, "no choice was found within the budgets 'size' and 'latency' together"),
    ):
        budgets = [average_budget(least + more, profile.weight_count), "latency=3"]
        with pytest.raises(InfeasibleError, match=reason):
            solve_plan(profile, arrays, budgets, "channel", tables=[table])
    # One channel of 4 bits, and codes that say which.
    budgets = [average_budget(least + 8 + 6, profile.weight_count), "latency=3"]
    assert solve_plan(profile, arrays, budgets, "channel", tables=[table]).layers[1].option is None


def test_no_plan_is_below_the_bound_of_the_joint_loss(small: Small) -> None:
    for bits in budgets_of(small):
        budget = average_budget(bits, small.profile.weight_count)
        plan = solve_plan(small.profile, small.arrays, budget, "channel", objective=Objective.JOINT)
        assert plan.certificate is not None
        losses = []
        # The shrinkage that the plan was made with is the one that explains its loss.
        for shrinkage in (0.0, 0.25, 0.5, 0.7, 0.85, 0.95):
            task = pose_task(small.profile, small.arrays, "100b", "channel")
            joint = joint_problem(task, shrinkage)
            if joint.loss_of(task.choice_of(plan)) == pytest.approx(plan.certificate.objective, rel=1e-5):
                losses = [joint.loss_of(choice) for choice in small.choices[small.bits <= bits]]
                break
        assert plan.certificate.bound <= min(losses) * (1 + 1e-5)
        assert plan.complexity.size_bits - plan.complexity.fixed_bits <= bits


def test_the_least_budget_is_that_of_the_cheapest_option_everywhere(small: Small) -> None:
    least, count = int(small.bits.min()), small.profile.weight_count
    for objective in (Objective.ADDITIVE, Objective.JOINT):
        plan = solve_plan(
            small.profile, small.arrays, average_budget(least, count), "channel", objective=objective
        )
        assert [layer.option for layer in plan.layers] == ["w2", "w2"]
    with pytest.raises(InfeasibleError, match=f"from {ceil(1000 * least / count) / 1000}b"):
        solve_plan(small.profile, small.arrays, average_budget(least - 1, count), "channel")


def test_no_plan_is_below_the_bound_of_the_curve(small: Small) -> None:
    posed = pose(small.profile, small.arrays, "channel")
    curve = pareto_curve(posed.problem, posed.savings([0]))
    loss = small.arrays.channel_loss.numpy()[np.arange(7), small.choices].sum(1)
    least = np.array([loss[small.bits <= bits].min() for bits in curve.bound_cost])
    assert (curve.bound_loss <= least * (1 + ROUNDING)).all()
    assert np.median(curve.bound_loss / least) > 0.9
    # Without what layers of one option save, some are.
    unaware = pareto_curve(posed.problem)
    assert (unaware.bound_loss > least * (1 + ROUNDING)).any()


def test_budgets_that_only_some_layers_of_one_option_meet_are_met(small: Small) -> None:
    table = CostTable("lat", {"0": {"w2": 7.0, "w4": 6.0, "w7": 5.0}, "2": {"w2": 3.0, "w4": 3.0, "w7": 1.0}})
    plan = solve_plan(
        small.profile, small.arrays, ["5.0910b", "lat=9.750"], "channel", tables=[table],
        objective=Objective.ADDITIVE,
    )  # fmt: skip
    assert [layer.option is None for layer in plan.layers].count(False) == 1


def test_two_budgets_are_proven_though_combinations_tie(small: Small) -> None:
    states = []
    for bits in budgets_of(small)[2:-2]:
        budget = average_budget(bits, small.profile.weight_count)
        plan = solve_plan(
            small.profile, small.arrays, [budget, "67B"], "channel", objective=Objective.ADDITIVE
        )
        assert plan.certificate is not None
        states.append(plan.certificate.status)
    assert set(states) == {Status.OPTIMAL}
