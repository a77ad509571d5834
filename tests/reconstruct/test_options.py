"""GPTQ of all options at once is GPTQ of each alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch

from apportion.allocator import LayerCut, Plan
from apportion.network import Data, Network, from_rows
from apportion.quantizer import Quantizer, parse_options
from apportion.reconstruct import Gptq, GptqOptions
from apportion.sensitivity import measure_profile

Assign = Callable[[Mapping[str, Sequence[str]]], Plan]
OPTIONS = ("w2", "w3", "w2x2", "w4t")


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_has_the_weights_that_gptq_gives_a_plan_of_it(
    network: Network, data: Data, plan: Plan, assign: Assign, option: str
) -> None:
    alone = Gptq(sequential=False).finalize(
        network, assign({layer.name: [option] * layer.shape[0] for layer in plan.layers}), data
    )
    every = GptqOptions(network, data, Quantizer())
    parsed = parse_options(",".join(OPTIONS))
    column = [str(each) for each in parsed].index(option)
    for layer, stored in zip(network.layers, alone.layers, strict=True):
        together = every(layer, parsed, LayerCut(layer.channels, layer.fan_in))
        assert together.shape == (layer.channels, len(OPTIONS), layer.fan_in)
        torch.testing.assert_close(together[:, column], stored.dequantize(), rtol=0, atol=0)


def test_layers_may_be_asked_for_in_any_order(network: Network, data: Data) -> None:
    options = parse_options("w2,w4")
    every = GptqOptions(network, data, Quantizer())

    def weights(index: int) -> torch.Tensor:
        layer = network.layers[index]
        return every(layer, options, LayerCut(layer.channels, layer.fan_in))

    first = [weights(index) for index in range(len(network.layers))]
    for index in (7, 2, 2, 0, 8):
        assert torch.equal(weights(index), first[index])


def test_scores_after_gptq_are_those_of_its_weights(network: Network, data: Data) -> None:
    options, quantizer = parse_options("w2,w3,w4"), Quantizer()
    few = Data(data.inputs[:32], None, data.name)
    every = GptqOptions(network, few, quantizer)
    nearest, _ = measure_profile(network, few, options, quantizer=quantizer)
    after, _ = measure_profile(network, few, options, quantizer=quantizer, after="gptq", weights=every)
    exact, _ = measure_profile(
        network, few, options, quantizer=quantizer, method="exact", after="gptq", weights=every
    )
    assert (nearest.after, after.after, exact.after) == ("nearest", "gptq", "gptq")
    assert len({nearest.fingerprint.settings, after.fingerprint.settings}) == 2
    fall = [
        scored.loss / other.loss
        for layer, twin in zip(after.layers, nearest.layers, strict=True)
        for scored, other in zip(layer.scores, twin.scores, strict=True)
    ]
    # What a layer loses by itself under GPTQ is a fraction of what it loses by rounding to nearest.
    assert sum(share < 1 for share in fall) >= 0.9 * len(fall)
    layer = network.layers[4]
    weight = every(layer, options, LayerCut(layer.channels, layer.fan_in))[:, 1]
    replaced = network.replace({layer.weight: from_rows(layer, weight)})
    reference, changed = network.run(few.inputs), replaced.run(few.inputs)
    logs = reference.log_softmax(-1)
    loss = (logs.exp() * (logs - changed.log_softmax(-1))).sum(-1).mean()
    assert exact.layers[4].scores[1].loss == pytest.approx(float(loss), rel=1e-4)
