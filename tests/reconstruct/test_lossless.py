"""The smallest plan within a limit on the drop: what is returned was measured within, and says how sure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from apportion.allocator import (
    Drop,
    DropKind,
    Measured,
    Plan,
    SearchOutcome,
    Trial,
    average_budget,
    lower_frontier,
    parse_tolerance,
)
from apportion.errors import InfeasibleError, InputError
from apportion.network import Data, Network, SampleQuality
from apportion.reconstruct import Candidate, Finalized, Way, can_measure, finalize_nearest, find_least
from apportion.reconstruct.drop import measured_drop
from apportion.reconstruct.least import budget_of
from apportion.sensitivity import Profile, ProfileArrays, pose, solve_plan, uniform_plans

Scored = tuple[Profile, ProfileArrays]


@pytest.fixture(scope="module")
def finalize(network: Network) -> Callable[[Plan], Finalized]:
    return lambda plan: finalize_nearest(network, plan)


@pytest.fixture(scope="module")
def way(profile: Scored) -> Way:
    """A choice per layer."""
    scores, arrays = profile

    def solved(bits: int) -> Plan:
        return solve_plan(scores, arrays, average_budget(bits, scores.weight_count), "layer")

    posed = pose(scores, arrays, "layer")
    return Way(lower_frontier(posed.problem), posed.least_bits, solved)


def bits_of(plan: Plan) -> int:
    return plan.complexity.size_bits - plan.complexity.fixed_bits


@pytest.fixture(scope="module")
def within_kl(
    network: Network, data: Data, way: Way, finalize: Callable[[Plan], Finalized]
) -> tuple[Candidate, list[Trial]]:
    """The least plan within 0.01 nats, and what was told on the way."""
    told: list[Trial] = []
    found = find_least(network, data, parse_tolerance("0.01kl"), [way], finalize, on_trial=told.append)
    return found, told


def test_the_plan_found_is_the_smallest_that_was_measured_within(
    within_kl: tuple[Candidate, list[Trial]],
) -> None:
    found, told = within_kl
    search, measured = found.plan.search, found.plan.measured
    assert search is not None
    assert measured is not None
    assert measured.drop is not None
    assert measured.loss == measured.drop.value <= 0.01
    assert list(search.trials) == told
    assert bits_of(found.plan) == min(trial.weight_bits for trial in told if trial.within)
    assert all(trial.within == (trial.drop.value <= 0.01) for trial in told)
    assert len(told) <= 12
    assert (search.limit, search.data) == ("0.01kl", measured.data)
    assert search.outcome is SearchOutcome.NARROWED


def test_no_assignment_is_measured_twice(
    within_kl: tuple[Candidate, list[Trial]],
) -> None:
    sizes = [trial.weight_bits for trial in within_kl[1]]
    assert len(sizes) == len(set(sizes))


def test_the_measured_drop_is_that_of_the_weights_returned(
    network: Network, data: Data, within_kl: tuple[Candidate, list[Trial]]
) -> None:
    found = within_kl[0]
    with torch.inference_mode():
        reference = network.run(data.inputs).double().log_softmax(-1)
        changed = network.run(data.inputs, tensors=found.finalized.tensors(network)).double().log_softmax(-1)
    loss = (reference.exp() * (reference - changed)).sum(-1).mean()
    # The batches of the measurement are cut differently: float32 outputs differ in their last digits.
    assert found.quality.loss == pytest.approx(float(loss), rel=1e-4)


def test_a_wider_limit_never_takes_more_bits(
    network: Network, data: Data, way: Way, finalize: Callable[[Plan], Finalized]
) -> None:
    sizes = [
        bits_of(find_least(network, data, parse_tolerance(limit), [way], finalize).plan)
        for limit in ("0.003kl", "0.03kl", "0.3kl")
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]


def test_of_several_ways_the_one_that_measures_better_goes_on(
    network: Network, data: Data, way: Way, profile: Scored, finalize: Callable[[Plan], Finalized]
) -> None:
    eight = uniform_plans(profile[0])["w8"]
    wasteful = Way(way.frontier, way.least, lambda bits: way.solve(int(way.frontier.cost[0])))
    for ways in ([wasteful, way], [way, wasteful]):
        found = find_least(network, data, parse_tolerance("0.01kl"), ways, finalize)
        assert found.quality.loss <= 0.01
        assert bits_of(found.plan) < bits_of(eight)


@pytest.mark.parametrize("other_is_within", [False, True])
def test_of_several_ways_one_within_the_limit_goes_on_below_the_smallest(
    network: Network, data: Data, way: Way, monkeypatch: pytest.MonkeyPatch, other_is_within: bool
) -> None:
    def solve_other(bits: int) -> Plan:
        plan = way.solve(int(0.97 * bits) if other_is_within else bits)
        return plan.model_copy(update={"unit": "channel", "assignment": f"other {plan.assignment}"})

    tolerance = parse_tolerance("0.1%")
    least, greatest = way.least, int(way.frontier.cost[-1])
    first = budget_of(way.bound, tolerance.first_guess(), least, greatest)

    def measure(network: Network, plan: Plan, *_: object, **__: object) -> Measured:
        other = plan.unit == "channel"
        within = bits_of(plan) >= (1.5 if other and not other_is_within else 0.7) * first
        value = 0.0 if within else 0.01
        drop = Drop(kind=DropKind.ACCURACY, value=value, low=value, high=value)
        # The other way has less loss, unless it is within the limit.
        loss = 0.02 if other == other_is_within else 0.01
        return Measured(loss=loss, standard_error=0.0, samples=1000, data=data.name, drop=drop)

    monkeypatch.setattr("apportion.reconstruct.lossless.measure_finalized", measure)
    other = Way(way.frontier, way.least, solve_other)
    as_is: Any = lambda plan: plan
    found = find_least(network, data, tolerance, [other, way], as_is)
    assert found.plan.unit == "layer"
    assert found.plan.search is not None
    trials = found.plan.search.trials
    smallest = min(trial.weight_bits for trial in trials[:2] if trial.within)
    assert trials[2:]
    assert all(trial.name == "per layer" and trial.weight_bits < smallest for trial in trials[2:])
    assert found.plan.search.outcome is SearchOutcome.NARROWED


def test_a_smaller_uniform_plan_within_the_limit_takes_the_place_of_what_was_found(
    network: Network, data: Data, way: Way, profile: Scored, finalize: Callable[[Plan], Finalized]
) -> None:
    # Scores that mislead: every budget buys eight bits.
    eight, four = (uniform_plans(profile[0])[option] for option in ("w8", "w4"))
    found = find_least(
        network,
        data,
        parse_tolerance("0.5kl"),
        [Way(way.frontier, way.least, lambda bits: eight)],
        finalize,
        uniform=lambda bits: four if bits > bits_of(four) else None,
    )
    assert found.plan.layers == four.layers
    assert found.plan.search is not None
    assert found.plan.search.outcome is SearchOutcome.UNIFORM
    assert [trial.name for trial in found.plan.search.trials] == ["per layer", "uniform w4"]


def test_a_limit_that_no_option_reaches_is_refused_with_the_best_that_was_measured(
    network: Network, data: Data, way: Way, finalize: Callable[[Plan], Finalized]
) -> None:
    with pytest.raises(
        InfeasibleError, match=r"within a drop of 0.000000001kl on digits.*: the best of \d+ measured has KL"
    ):
        find_least(network, data, parse_tolerance("0.000000001kl"), [way], finalize)


def test_a_limit_that_every_option_keeps_gives_the_least(
    network: Network, data: Data, way: Way, finalize: Callable[[Plan], Finalized]
) -> None:
    found = find_least(network, data, parse_tolerance("1000kl"), [way], finalize)
    assert found.plan.search is not None
    assert found.plan.search.outcome is SearchOutcome.LEAST
    assert bits_of(found.plan) == way.frontier.cost[0]


def test_what_a_drop_needs_of_the_data() -> None:
    inputs = torch.zeros(3, 4)
    answers, tokens = torch.zeros(3, dtype=torch.long), torch.zeros(3, 4, dtype=torch.long)
    measurable = {
        name: [kind for kind in DropKind if can_measure(kind, Data(inputs, labels, name))]
        for name, labels in (("none", None), ("answers", answers), ("tokens", tokens))
    }
    assert measurable == {
        "none": [DropKind.KL],
        "answers": [DropKind.ACCURACY, DropKind.KL],
        "tokens": [DropKind.ACCURACY, DropKind.KL, DropKind.PERPLEXITY],
    }


def test_a_drop_without_labels_is_refused() -> None:
    with pytest.raises(InputError, match="a drop in accuracy needs labels"):
        measured_drop(DropKind.ACCURACY, SampleQuality(torch.zeros(3)))


def test_the_interval_of_a_kl_never_reaches_below_0() -> None:
    drop = measured_drop(DropKind.KL, SampleQuality(torch.tensor([0.0, 0.0, 1.0])))
    assert drop.low == 0
    assert drop.high > drop.value > 0


def test_a_plan_whose_output_is_not_finite_is_outside_every_limit(
    network: Network, data: Data, way: Way, broken: Callable[[Network, Finalized], Finalized]
) -> None:
    enough = int(way.frontier.cost[0] + way.frontier.cost[-1]) // 2

    def finalize(plan: Plan) -> Finalized:
        found = finalize_nearest(network, plan)
        return found if bits_of(plan) > enough else broken(network, found)

    told: list[Trial] = []
    found = find_least(network, data, parse_tolerance("9kl"), [way], finalize, on_trial=told.append)
    assert found.plan.search is not None
    assert found.plan.search.outcome is SearchOutcome.NARROWED
    assert all(trial.weight_bits > enough for trial in told)


def test_where_no_plan_is_finite_no_limit_can_be_kept(
    network: Network, data: Data, way: Way, broken: Callable[[Network, Finalized], Finalized]
) -> None:
    with pytest.raises(InfeasibleError, match="NaN or infinite at all bits that were tried"):
        find_least(
            network,
            data,
            parse_tolerance("9kl"),
            [way, way],
            lambda plan: broken(network, finalize_nearest(network, plan)),
        )
