"""Moves by the measured loss: never worse, within the budget, along slopes that differences confirm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from apportion.allocator import Constraints
from apportion.errors import InputError
from apportion.network import Data, Network
from apportion.quantizer import Quantizer, parse_options
from apportion.reconstruct import Gptq, GptqOptions, finalize_nearest, measure_finalized
from apportion.sensitivity import (
    Profile,
    ProfileArrays,
    Task,
    measure_profile,
    pose_task,
    refine,
    refine_plan,
    solve_plan,
)
from apportion.sensitivity.around import Around
from apportion.sensitivity.fisher import FisherSettings

Scored = tuple[Profile, ProfileArrays]


@pytest.fixture(scope="module")
def scored(network: Network, data: Data) -> Scored:
    profile, arrays = measure_profile(network, data, parse_options("w2..5"))
    assert arrays is not None
    return profile, arrays


def low_end(scored: Scored) -> tuple[Task, NDArray[np.intp]]:
    """A task whose scores mislead, and the choice of its plan."""
    task = pose_task(*scored, "2.8b", "channel")
    return task, task.choice_of(solve_plan(*scored, "2.8b", "channel"))


@pytest.mark.parametrize("unit", ["layer", "channel", "tile:4"])
def test_refining_never_raises_the_measured_loss_and_keeps_the_budget(
    network: Network, data: Data, scored: Scored, unit: str
) -> None:
    plan = solve_plan(*scored, "2.8b", unit)
    refined = refine_plan(network, data, *scored, plan, 6)
    account = refined.refinement
    assert account is not None
    assert account.loss <= account.start_loss
    assert account.evaluations <= 6
    assert refined.complexity.average_bits <= 2.8
    deciding = Data(data.inputs[len(data.inputs) // 2 :], None, data.name)
    measured = measure_finalized(network, finalize_nearest(network, refined), deciding)
    # The moves measure dequantized options, the final weights are stored steps: the same numbers.
    assert measured.loss == pytest.approx(account.loss, rel=1e-4)


def test_after_gptq_moves_are_measured_of_what_gptq_makes_of_the_weights(
    network: Network, data: Data
) -> None:
    weights = GptqOptions(network, data, Quantizer())
    scored = measure_profile(network, data, parse_options("w2..5"), after="gptq", weights=weights)
    plan = solve_plan(*scored, "2.5b", "channel")
    with pytest.raises(InputError, match="scores what gptq makes of the weights"):
        refine_plan(network, data, *scored, plan, 6)
    # From a plan that leaves room in the budget there are moves that pay.
    task = pose_task(*scored, "3b", "channel")
    found = refine(network, data, task, [task.choice_of(plan)], 6, weights=weights)
    assert found.loss < found.start_loss
    refined = task.plan_of(found.choice)
    deciding = data.part(slice(len(data.inputs) // 2, None))
    # On the float network's inputs a row's codes do not depend on the options of others.
    finalized = Gptq(sequential=False).finalize(network, refined, data)
    assert measure_finalized(network, finalized, deciding).loss == pytest.approx(found.loss, rel=1e-3)


def test_at_low_bits_moves_lower_the_loss(network: Network, data: Data, scored: Scored) -> None:
    plan = solve_plan(*scored, "2.8b", "channel")
    account = refine_plan(network, data, *scored, plan, 10).refinement
    assert account is not None
    assert account.accepted >= 1
    assert account.loss < 0.95 * account.start_loss


def test_the_samples_that_decide_have_no_part_in_the_moves(
    network: Network, data: Data, scored: Scored
) -> None:
    task, start = low_end(scored)
    half = len(data.inputs) // 2
    others = torch.cat([data.inputs[:half], data.inputs[half:].flip(-1)])
    one, two = (refine(network, given, task, [start], 2) for given in (data, Data(others, None, "flipped")))
    assert [step.moved for step in one.steps] == [step.moved for step in two.steps]
    assert [step.loss for step in one.steps] == [step.loss for step in two.steps]
    assert one.start_loss != two.start_loss


def test_what_is_returned_is_the_best_of_the_path_on_the_samples_that_decide(
    network: Network, data: Data, scored: Scored
) -> None:
    task, start = low_end(scored)
    # Half as many samples as channels: the path soon fits them and not the others.
    few = Data(data.inputs[:24], None, "few")
    found = refine(network, few, task, [start], 12)
    deciding = [step.deciding for step in found.steps if step.deciding is not None]
    assert found.loss == min([found.start_loss, *deciding])
    assert found.loss == Around(
        network, few, Data(few.inputs[12:], None, ""), task, FisherSettings()
    ).deciding_loss(found.choice)
    assert [step.best for step in found.steps if step.accepted] == [
        loss < min([found.start_loss, *deciding[:index]]) for index, loss in enumerate(deciding)
    ]


def test_a_path_that_no_longer_betters_the_plan_goes_on_from_the_best(
    network: Network, data: Data, scored: Scored
) -> None:
    task, start = low_end(scored)
    few = Data(data.inputs[:24], None, "few")
    moving = Data(few.inputs[:12], None, "")
    here = best = Around(network, moving, moving, task, FisherSettings()).loss(start)
    worse = backs = 0
    for step in refine(network, few, task, [start], 12).steps:
        assert step.accepted == (step.loss < here)
        if not step.accepted:
            continue
        here = step.loss
        best, worse = (here, 0) if step.best else (best, worse + 1)
        if worse == 2:
            here, worse, backs = best, 0, backs + 1
    assert backs > 0


def test_the_path_begins_at_the_start_that_loses_least_on_the_samples_that_decide(
    network: Network, data: Data, scored: Scored
) -> None:
    task, start = low_end(scored)
    poor = np.zeros_like(start)
    alone, among = (refine(network, data, task, starts, 2) for starts in ([start], [poor, start]))
    assert among.start_loss == alone.start_loss
    assert among.steps == alone.steps
    assert refine(network, data, task, [poor], 0).loss > alone.start_loss


def test_a_plan_per_layer_is_a_start_for_channels(network: Network, data: Data, scored: Scored) -> None:
    task = pose_task(*scored, "2.8b", "channel")
    layers, channels = (solve_plan(*scored, "2.8b", unit) for unit in ("layer", "channel"))
    wide, within = task.choice_of(layers), task.choice_within(layers)
    assert (task.problem.costs_of(within) <= np.array(task.problem.budgets)).all()
    assert (task.problem.costs_of(wide) > np.array(task.problem.budgets)).any()
    assert (within <= wide).all()
    assert (within == wide).mean() > 0.5
    # Within a budget that has room it is the plan itself.
    roomy = pose_task(*scored, "4b", "channel")
    assert np.array_equal(roomy.choice_within(layers), wide)
    # A plan that loses more than its rival is not where the path begins.
    poor = task.plan_of(np.zeros_like(wide))
    assert refine_plan(network, data, *scored, poor, 0, rivals=[layers]).layers == task.plan_of(within).layers
    assert refine_plan(network, data, *scored, channels, 0).layers == channels.layers


def test_refining_repeats_itself(network: Network, data: Data, scored: Scored) -> None:
    task, start = low_end(scored)
    one, two = (refine(network, data, task, [start], 4) for _ in range(2))
    assert one.steps == two.steps
    assert np.array_equal(one.choice, two.choice)


def test_every_measured_move_is_told(network: Network, data: Data, scored: Scored) -> None:
    task, start = low_end(scored)
    told = []
    found = refine(network, data, task, [start], 3, on_step=told.append)
    assert tuple(told) == found.steps
    assert [step.evaluations for step in told] == list(range(1, len(told) + 1))


def test_pinned_layers_stay(network: Network, data: Data, scored: Scored) -> None:
    name = scored[0].layers[1].name
    pinned = Constraints(pin={name: "w5"})
    plan = solve_plan(*scored, "3.2b", "channel", constraints=pinned)
    refined = refine_plan(network, data, *scored, plan, 4)
    (layer,) = [layer for layer in refined.layers if layer.name == name]
    assert set(layer.strip_options()) == {"w5"}


def test_the_slope_is_that_of_the_loss(network: Network, data: Data, scored: Scored) -> None:
    task = pose_task(*scored, "3b", "layer")
    around = Around(network, data, data, task, FisherSettings())
    choice = task.choice_of(solve_plan(*scored, "3b", "layer"))
    slope = around.part_slope(choice, np.arange(len(data.inputs)))
    row, option = 1, 0
    name = network.layers[row].weight
    here, there = choice.copy(), choice.copy()
    there[row] = option
    low, high = around.tensors(here)[name], around.tensors(there)[name]
    part = 2e-4
    losses = [around.loss_with(here, {name: low + sign * part * (high - low)}) for sign in (1, -1)]
    expected = (losses[0] - losses[1]) / (2 * part)
    # Central differences of a float32 network over a small part of the move.
    assert slope[row, option] - slope[row, choice[row]] == pytest.approx(expected, rel=0.02)
