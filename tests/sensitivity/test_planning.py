"""From a profile and a budget to a plan: within the budget, counted exactly, with its certificate."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.allocator import Constraints, Plan, Status, assignment_digest, average_budget
from apportion.errors import InfeasibleError, InputError
from apportion.quantizer import parse_option, stored_bits
from apportion.sensitivity import (
    Profile,
    ProfileArrays,
    best_uniform_plan,
    budget_bits,
    solve_plan,
    uniform_options,
    uniform_plans,
)

MakeProfile = Callable[..., tuple[Profile, ProfileArrays]]
Unit = Literal["layer", "channel"]
units = st.sampled_from(["layer", "channel"])


def weight_bits(plan: Plan) -> int:
    """Bits of all layers, counted again from their channels' options."""
    return sum(
        stored_bits(
            [parse_option(option) for option in layer.strip_options()], layer.shape[1], len(plan.options)
        )
        for layer in plan.layers
    )


@settings(derandomize=True, deadline=None)
@given(unit=units, tenths=st.integers(33, 80), seed=st.integers(0, 1000))
def test_a_plan_never_exceeds_its_budget_and_states_its_size_exactly(
    make_profile: MakeProfile, unit: Unit, tenths: int, seed: int
) -> None:
    profile, arrays = make_profile(seed=seed)
    budget = f"{tenths / 10}b"
    plan = solve_plan(profile, arrays, budget, unit)
    bits = weight_bits(plan)
    assert bits <= budget_bits(profile, budget)
    assert sum(layer.size_bits for layer in plan.layers) == bits
    assert plan.complexity.size_bits == bits + profile.fixed_bits
    assert plan.complexity.average_bits == bits / profile.weight_count
    assert plan.assignment == assignment_digest(plan.layers)
    certificate = plan.certificate
    assert certificate is not None
    assert certificate.bound <= certificate.objective
    assert plan.predicted_loss == pytest.approx(certificate.objective, rel=1e-9)


@settings(derandomize=True, deadline=None)
@given(unit=units, tenths=st.integers(33, 79), seed=st.integers(0, 1000))
def test_a_greater_budget_never_costs_quality(
    make_profile: MakeProfile, unit: Unit, tenths: int, seed: int
) -> None:
    profile, arrays = make_profile(seed=seed)
    less = solve_plan(profile, arrays, f"{tenths / 10}b", unit).predicted_loss
    more = solve_plan(profile, arrays, f"{(tenths + 1) / 10}b", unit).predicted_loss
    assert more <= less * (1 + 1e-12)


def test_the_plan_per_layer_is_the_best_of_all_assignments(make_profile: MakeProfile) -> None:
    profile, arrays = make_profile()
    limit = budget_bits(profile, "4b")
    first, second, third = (layer.scores for layer in profile.layers)
    best = min(
        a.loss + b.loss + c.loss
        for a in first
        for b in second
        for c in third
        if a.size_bits + b.size_bits + c.size_bits <= limit
    )
    plan = solve_plan(profile, arrays, "4b", "layer")
    assert plan.predicted_loss == pytest.approx(best, rel=1e-12)
    assert plan.certificate is not None
    assert plan.certificate.status is Status.OPTIMAL


@pytest.mark.parametrize("unit", ["layer", "channel"])
def test_layers_of_a_plan_predict_the_scores_of_their_options(make_profile: MakeProfile, unit: Unit) -> None:
    profile, arrays = make_profile()
    plan = solve_plan(profile, arrays, "4b", unit)
    start = 0
    for layer, scored in zip(plan.layers, profile.layers, strict=True):
        columns = [profile.options.index(option) for option in layer.strip_options()]
        rows = range(start, start + scored.channels)
        start += scored.channels
        # Made by hand, the score of a layer is the sum of its channels' scores.
        expected = float(arrays.channel_loss[rows, columns].sum())
        assert layer.predicted_loss == pytest.approx(expected, rel=1e-9)
    assert plan.unit == unit
    assert any(layer.strips for layer in plan.layers) == (unit == "channel")


@pytest.mark.parametrize("budget", ["4b", "60%", "255B"])
def test_every_kind_of_budget_limits_the_same_bits(make_profile: MakeProfile, budget: str) -> None:
    profile, arrays = make_profile()
    whole = {
        "4b": 4 * profile.weight_count + profile.fixed_bits,
        "60%": int(0.6 * profile.float_bits),
        "255B": 8 * 255,
    }
    limit = whole[budget] - profile.fixed_bits
    assert budget_bits(profile, budget) == limit
    assert weight_bits(solve_plan(profile, arrays, budget, "layer")) <= limit


@pytest.mark.parametrize("unit", ["layer", "channel"])
def test_a_budget_that_cannot_be_met_names_the_least_and_the_greatest(
    make_profile: MakeProfile, unit: Unit
) -> None:
    profile, arrays = make_profile()
    message = r"budget 2b is below what the options w2, .* can reach per \w+: from ([\d.]+)b .* to ([\d.]+)b"
    with pytest.raises(InfeasibleError, match=message) as caught:
        solve_plan(profile, arrays, "2b", unit)
    found = re.search(message, str(caught.value))
    assert found is not None
    steps, codes = (13 * bits / profile.weight_count for bits in (16, 2 if unit == "channel" else 0))
    # Layers of one option store no codes.
    assert float(found[1]) == pytest.approx(2 + steps, abs=1e-3)
    assert float(found[2]) == pytest.approx(5 + steps + codes, abs=1e-3)


def test_the_least_and_the_greatest_that_a_refusal_names_can_be_solved(make_profile: MakeProfile) -> None:
    profile, arrays = make_profile()
    with pytest.raises(InfeasibleError, match=r"from [\d.]+b") as caught:
        solve_plan(profile, arrays, "1b", "layer")
    forms = r"([\d.]+b) \(([\d.]+MB), ([\d.]+%)\)"
    least, greatest = re.findall(forms, str(caught.value))
    for budgets, option in ((least, "w2"), (greatest, "w5")):
        for budget in budgets:
            plan = solve_plan(profile, arrays, budget, "layer")
            assert {layer.option for layer in plan.layers} == {option}


def test_what_is_no_budget_is_refused(make_profile: MakeProfile) -> None:
    profile, arrays = make_profile()
    with pytest.raises(InputError, match="'plenty' is not a budget"):
        solve_plan(profile, arrays, "plenty", "layer")


@pytest.mark.parametrize("unit", ["layer", "channel"])
def test_the_best_uniform_plan_is_the_least_loss_that_fits(make_profile: MakeProfile, unit: Unit) -> None:
    profile, arrays = make_profile()
    plan = solve_plan(profile, arrays, "4.5b", unit)
    uniform = best_uniform_plan(profile, plan)
    assert uniform is not None
    fitting = {
        option: loss
        for option, (size_bits, loss) in uniform_options(profile).items()
        if size_bits <= budget_bits(profile, "4.5b")
    }
    option = min(fitting, key=lambda text: fitting[text])
    assert {layer.option for layer in uniform.layers} == {option}
    assert uniform.predicted_loss == pytest.approx(fitting[option])
    assert uniform.predicted_loss >= plan.predicted_loss or unit == "channel"
    assert weight_bits(uniform) <= budget_bits(profile, "4.5b")
    assert uniform.unit == "layer"


def test_a_uniform_plan_keeps_the_bound_that_is_proven_for_its_budget(make_profile: MakeProfile) -> None:
    profile, arrays = make_profile()
    plan = solve_plan(profile, arrays, "4.5b", "layer")
    uniform = best_uniform_plan(profile, plan)
    assert uniform is not None
    assert plan.certificate is not None
    assert uniform.certificate is not None
    assert uniform.certificate.bound == plan.certificate.bound
    assert uniform.certificate.objective == pytest.approx(uniform.predicted_loss)
    assert uniform.certificate.status is Status.MEASURED
    # Choices per channel have another bound, which proves nothing about layers.
    per_channel = best_uniform_plan(profile, solve_plan(profile, arrays, "4.5b", "channel"))
    assert per_channel is not None
    assert per_channel.certificate is None


def test_no_uniform_plan_where_no_option_fits_every_layer(make_profile: MakeProfile) -> None:
    profile, arrays = make_profile(shapes=((2, 40), (3, 10)), options="w2,w6g20")
    plan = solve_plan(profile, arrays, "4b", "layer")
    assert best_uniform_plan(profile, plan) is not None
    grouped, arrays = make_profile(shapes=((2, 40), (3, 40)), options="w3g20,w6")
    plan = solve_plan(grouped, arrays, "4b", "layer")
    tight = plan.model_copy(update={"budgets": ("3b",)})
    assert best_uniform_plan(grouped, tight) is None


def test_uniform_plans_state_their_own_size_and_best_uniform_is_one_of_them(
    profile: tuple[Profile, ProfileArrays], plan: Plan
) -> None:
    plans = uniform_plans(profile[0])
    options = uniform_options(profile[0])
    assert set(plans) == set(options)
    for option, uniform in plans.items():
        size_bits, predicted = options[option]
        assert uniform.complexity.size_bits - uniform.complexity.fixed_bits == size_bits
        assert uniform.predicted_loss == pytest.approx(predicted)
        assert {layer.option for layer in uniform.layers} == {option}
    best = best_uniform_plan(profile[0], plan)
    assert best is not None
    with_ends = uniform_plans(profile[0], ends=True)
    assert best.layers in [uniform.layers for uniform in (*plans.values(), *with_ends.values())]


def test_a_uniform_plan_with_8_bits_at_both_ends_competes_where_it_fits(
    profile: tuple[Profile, ProfileArrays],
) -> None:
    ends = uniform_plans(profile[0], ends=True)["w3"]
    assert [layer.option for layer in ends.layers] == ["w8", *["w3"] * (len(ends.layers) - 2), "w8"]
    assert ends.uniform_name() == "w3, ends w8"
    plan = solve_plan(*profile, ends.budgets, "layer")
    best = best_uniform_plan(profile[0], plan)
    assert best is not None
    assert best.layers == ends.layers
    assert best.constraints == plan.constraints
    # A little less, and it does not fit.
    size_bits = ends.complexity.size_bits - ends.complexity.fixed_bits
    less = average_budget(size_bits - 100, profile[0].weight_count)
    smaller = best_uniform_plan(profile[0], solve_plan(*profile, less, "layer"))
    assert smaller is not None
    assert smaller.layers != ends.layers
    assert uniform_options(profile[0], ends=True)["w3"][0] == size_bits


def test_ends_that_rules_name_or_tie_are_left_to_them(profile: tuple[Profile, ProfileArrays]) -> None:
    first, second, *_, last = (layer.name for layer in profile[0].layers)
    rules = Constraints(pin={last: "w4"}, tie=((first, second),))
    plan = uniform_plans(profile[0], rules, ends=True)["w3"]
    assert [layer.option for layer in (plan.layers[0], plan.layers[-1])] == ["w3", "w4"]
