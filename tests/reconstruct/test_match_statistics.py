"""Batch-norm re-estimation: means and deviations of all outputs as in the float network, or nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from apportion.allocator import Plan
from apportion.network import Data, LayerCall, Network, capture
from apportion.reconstruct import (
    Finalized,
    finalize_nearest,
    match_statistics,
    measure_finalized,
)
from apportion.reconstruct.held_out import learned_and_judged
from apportion.reconstruct.match_statistics import HELD_OUT, matched

PlanOf = Callable[..., Plan]
Check = Callable[[Network, Plan, Finalized], None]


def moments(network: Network, data: Data, tensors: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and deviation per channel of every layer's output."""
    found = {}

    def watch(call: LayerCall, entering: Tensor, leaving: Tensor) -> Tensor:
        last = leaving if call.layer.kind == "linear" else leaving.movedim(1, -1)
        wide = last.double().flatten(0, -2)
        found[call.layer.name] = (wide.mean(0), wide.std(0, correction=0))
        return leaving

    with torch.inference_mode():
        network.run(data.inputs, tensors=tensors, on_layer=watch)
    return found


@pytest.mark.parametrize(
    ("options", "cut"),
    [(["w2"], None), (["w3", "w2x2", "w4"], None), (["w2g4"], None), (["w2", "w4"], "inputs:3")],
)
def test_all_layers_of_the_quantized_network_have_the_means_and_deviations_of_the_float_one(
    kinds: Network, kinds_data: Data, plan_of: PlanOf, options: list[str], cut: str | None
) -> None:
    rounded = finalize_nearest(kinds, plan_of(kinds, options, cut))
    aim = moments(kinds, kinds_data, {})
    before = moments(kinds, kinds_data, rounded.tensors(kinds))
    after = moments(kinds, kinds_data, matched(kinds, kinds_data, rounded, scale=True).tensors(kinds))
    shifted = moments(kinds, kinds_data, matched(kinds, kinds_data, rounded, scale=False).tensors(kinds))
    for layer in kinds.layers:
        mean, deviation = aim[layer.name]
        # Steps have 11 bits, and each layer's are rounded after its own statistics were taken.
        torch.testing.assert_close(after[layer.name][1], deviation, rtol=2e-3, atol=1e-4)
        size = float(deviation.max() + mean.abs().max())
        if layer.bias is not None:
            torch.testing.assert_close(after[layer.name][0], mean, rtol=0, atol=2e-3 * size)
            torch.testing.assert_close(shifted[layer.name][0], mean, rtol=0, atol=1e-4 * size)
    worst = max(float((before[name][1] / aim[name][1] - 1).abs().max()) for name in aim)
    assert worst > 0.05


def test_tensors_of_one_step_keep_it_and_codes_stay_always(
    kinds: Network, kinds_data: Data, plan_of: PlanOf, check_storable: Check
) -> None:
    for options in (["w3t"], ["w3", "w2x2"]):
        chosen = plan_of(kinds, options)
        rounded = finalize_nearest(kinds, chosen)
        found = matched(kinds, kinds_data, rounded, scale=True)
        check_storable(kinds, chosen, found)
        for after, before in zip(found.layers, rounded.layers, strict=True):
            for new, old in zip(after.parts, before.parts, strict=True):
                assert torch.equal(new.rows.codes, old.rows.codes)
                assert torch.equal(new.rows.steps, old.rows.steps) == (options == ["w3t"])


@pytest.mark.parametrize("option", ["w2", "w3", "w8"])
def test_what_is_returned_is_never_worse_on_the_data_that_judges(
    network: Network, plan_of: PlanOf, data: Data, option: str
) -> None:
    rounded = finalize_nearest(network, plan_of(network, [option]))
    judged = learned_and_judged(len(data.inputs), HELD_OUT)[1]
    judge = Data(data.inputs[judged.start :], None, "judge")
    before = measure_finalized(network, rounded, judge).loss
    assert measure_finalized(network, match_statistics(network, data, rounded), judge).loss <= before


def test_digits_at_two_bits_lose_less_when_matched(network: Network, plan_of: PlanOf, data: Data) -> None:
    rounded = finalize_nearest(network, plan_of(network, ["w2"]))
    before = measure_finalized(network, rounded, data).loss
    assert measure_finalized(network, match_statistics(network, data, rounded), data).loss < 0.8 * before


class Dead(nn.Module):
    """A layer whose channel 0 is always the same, and one that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 6)
        self.shared = nn.Linear(6, 6)
        with torch.no_grad():
            self.first.weight[0] = 0

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.shared(self.shared(self.first(x)).relu())
        return out


def test_constant_channels_and_shared_layers_stay_finite(plan_of: PlanOf) -> None:
    data = Data(torch.rand(40, 6, generator=torch.Generator().manual_seed(2)), None, "uniform")
    network = capture(Dead(), data.inputs[:2])
    found = matched(network, data, finalize_nearest(network, plan_of(network, ["w2"])), scale=True)
    assert all(bool(tensor.isfinite().all()) for tensor in found.tensors(network).values())


def test_means_agree_with_steps_as_they_are_stored(kinds: Network, kinds_data: Data, plan_of: PlanOf) -> None:
    rounded = finalize_nearest(kinds, plan_of(kinds, ["w2"]))
    aim = moments(kinds, kinds_data, {})
    after = moments(kinds, kinds_data, matched(kinds, kinds_data, rounded, scale=True).tensors(kinds))
    for layer in kinds.layers:
        if layer.bias is not None:
            size = float(aim[layer.name][0].abs().max())
            torch.testing.assert_close(after[layer.name][0], aim[layer.name][0], rtol=0, atol=1e-5 * size)
