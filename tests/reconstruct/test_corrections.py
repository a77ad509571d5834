"""The front door of corrections: each follows any method and each other, and repeats what it names."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from apportion.allocator import Plan
from apportion.network import Data, Network
from apportion.reconstruct import (
    AdaQuant,
    Corrected,
    Correction,
    Finalized,
    Gptq,
    Nearest,
    StraightThrough,
    correct,
    correct_biases,
    finalize_nearest,
    match_statistics,
    measure_finalized,
    tune_biases,
)
from apportion.reconstruct.bias_tuning import HELD_OUT
from apportion.reconstruct.held_out import learned_and_judged

PlanOf = Callable[..., Plan]
BY_HAND: dict[Correction, Callable[[Network, Data, Finalized], Finalized]] = {
    Correction.BATCH_NORM: match_statistics,
    Correction.TUNE: lambda network, data, finalized: tune_biases(network, data, finalized, 3),
}


@pytest.mark.parametrize(
    "method", [Gptq(), AdaQuant(start=None, held_out=0.25, learning=StraightThrough(iterations=20))]
)
def test_corrections_follow_any_method_and_each_other(
    network: Network, data: Data, plan_of: PlanOf, method: Gptq | AdaQuant
) -> None:
    found = method.finalize(network, plan_of(network, ["w2"]), data)
    judge = Data(data.inputs[learned_and_judged(len(data.inputs), HELD_OUT)[1].start :], None, "judge")
    losses = [measure_finalized(network, found, judge).loss]
    for correction in (Correction.BATCH_NORM, Correction.TUNE):
        found = correct(network, data, found, correction, 3)
        losses.append(measure_finalized(network, found, judge).loss)
    assert losses == sorted(losses, reverse=True)
    assert correct(network, data, found, Correction.BIAS).layers is found.layers


@pytest.mark.parametrize("correction", BY_HAND)
def test_the_front_door_does_what_the_correction_names(
    network: Network, data: Data, plan_of: PlanOf, correction: Correction
) -> None:
    rounded = finalize_nearest(network, plan_of(network, ["w2"]))
    one = correct(network, data, rounded, correction, 3).tensors(network)
    other = BY_HAND[correction](network, data, rounded).tensors(network)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(not torch.equal(tensor, network.tensors[name]) for name, tensor in one.items())


def test_a_corrected_method_is_the_method_and_then_its_corrections_in_order(
    network: Network, data: Data, plan_of: PlanOf
) -> None:
    chosen = plan_of(network, ["w2"])
    order = (Correction.BIAS, Correction.TUNE)
    by_hand = Nearest().finalize(network, chosen, data)
    for correction in order:
        by_hand = correct(network, data, by_hand, correction, 5)
    one = Corrected(Nearest(), order, 5).finalize(network, chosen, data).tensors(network)
    assert all(torch.equal(one[name], tensor) for name, tensor in by_hand.tensors(network).items())


@pytest.mark.parametrize("method", [Nearest(), Gptq()])
def test_bias_correction_is_made_only_where_it_helps_samples_that_it_does_not_see(
    network: Network, data: Data, plan_of: PlanOf, method: Nearest | Gptq
) -> None:
    given = method.finalize(network, plan_of(network, ["w2"]), data)
    learned, judged = learned_and_judged(len(data.inputs), HELD_OUT)
    seen, judge = (Data(data.inputs[part.start : part.stop], None, "part") for part in (learned, judged))
    found = correct(network, data, given, Correction.BIAS)
    assert measure_finalized(network, found, judge).loss <= measure_finalized(network, given, judge).loss
    if found is not given:
        by_hand = correct_biases(network, seen, given).biases
        assert all(torch.equal(found.biases[name], bias) for name, bias in by_hand.items())


@pytest.mark.parametrize("correction", list(Correction))
def test_a_single_sample_that_judges_lets_nothing_be_corrected(
    network: Network, data: Data, plan_of: PlanOf, correction: Correction
) -> None:
    given = Nearest().finalize(network, plan_of(network, ["w2"]), data)
    assert correct(network, Data(data.inputs[:2], None, "two"), given, correction) is given
