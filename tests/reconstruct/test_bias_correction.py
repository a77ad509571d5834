"""Bias correction: quantizing a layer alone leaves its mean output where it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from apportion.allocator import Plan
from apportion.network import Data, LayerCall, Network, capture
from apportion.quantizer import parse_options
from apportion.reconstruct import Finalized, Gptq, correct_biases, finalize_nearest
from apportion.sensitivity import measure_profile, solve_plan

TOLERANCE = 1e-4
"""Of mean outputs of order 1: float32 sums of some thousand products."""


class Kinds(nn.Module):
    """A biased layer of every kind: strided, padded, "same", depthwise, per token, and transposed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.strided = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, (2, 3), padding="same", dilation=2, groups=8)
        self.grouped = nn.Conv2d(8, 6, 3, groups=2, bias=False)
        self.line = nn.Conv1d(6, 6, 3, padding=1)
        self.tokens = nn.Linear(6, 10)
        self.weight = nn.Parameter(torch.randn(10, 7))
        self.bias = nn.Parameter(torch.randn(7))

    def forward(self, x: Tensor) -> Tensor:
        x = self.strided(x).relu()
        x = self.depthwise(x).relu()
        x = self.grouped(x).relu().flatten(2)
        x = self.line(x).relu().transpose(1, 2)
        x = self.tokens(x).relu().mean(1)
        return torch.addmm(self.bias, x, self.weight)


@pytest.fixture(scope="module")
def kinds_data() -> Data:
    """More samples than fit one batch, none of mean zero."""
    inputs = torch.rand(70, 3, 11, 9, generator=torch.Generator().manual_seed(1))
    return Data(inputs, None, "uniform")


@pytest.fixture(scope="module")
def kinds(kinds_data: Data) -> Network:
    return capture(Kinds(), kinds_data.inputs)


@pytest.fixture(scope="module")
def rounded(kinds: Network, kinds_data: Data) -> Finalized:
    """Every layer at 2 bits."""
    few = Data(kinds_data.inputs[:4], None, "uniform")
    profile, arrays = measure_profile(kinds, few, parse_options("w2"))
    return finalize_nearest(kinds, solve_plan(profile, arrays, "30b", "layer"))


def mean_outputs(network: Network, data: Data, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Mean output per channel of every use of a layer."""
    means = {}

    def watch(call: LayerCall, entering: Tensor, leaving: Tensor) -> Tensor:
        channels_last = leaving if call.layer.kind == "linear" else leaving.movedim(1, -1)
        means[call.layer.name] = channels_last.double().flatten(0, -2).mean(0)
        return leaving

    with torch.inference_mode():
        network.run(data.inputs, tensors=tensors, on_layer=watch)
    return means


def test_every_kind_of_layer_keeps_its_mean_output_when_it_alone_is_quantized(
    kinds: Network, kinds_data: Data, rounded: Finalized
) -> None:
    before = mean_outputs(kinds, kinds_data, {})
    corrected = correct_biases(kinds, kinds_data, rounded).tensors(kinds)
    biased = [layer for layer in kinds.layers if layer.bias is not None]
    assert len(biased) == 5
    assert any(layer.transposed for layer in biased)
    for layer in biased:
        assert layer.bias is not None
        weight = {layer.weight: corrected[layer.weight]}
        shifted = mean_outputs(kinds, kinds_data, weight)[layer.name]
        kept = mean_outputs(kinds, kinds_data, {**weight, layer.bias: corrected[layer.bias]})[layer.name]
        # The correction has something to do.
        assert float((shifted - before[layer.name]).abs().max()) > 20 * TOLERANCE
        torch.testing.assert_close(kept, before[layer.name], rtol=0, atol=TOLERANCE)


def test_correction_touches_biases_alone(kinds: Network, kinds_data: Data, rounded: Finalized) -> None:
    corrected = correct_biases(kinds, kinds_data, rounded)
    assert corrected.layers is rounded.layers
    assert set(corrected.biases) == {layer.bias for layer in kinds.layers if layer.bias is not None}
    for name, bias in corrected.biases.items():
        assert bias.shape == kinds.tensors[name].shape
        assert bias.dtype == kinds.tensors[name].dtype
    assert rounded.biases == {}


def test_correction_of_the_float_weights_changes_nothing(network: Network, data: Data, plan: Plan) -> None:
    eight = plan.model_copy(
        update={"layers": tuple(layer.model_copy(update={"option": "w8"}) for layer in plan.layers)}
    )
    finalized = finalize_nearest(network, eight)
    exact = network.replace(finalized.tensors(network))
    corrected = correct_biases(exact, data, finalized)
    for name, bias in corrected.biases.items():
        torch.testing.assert_close(bias, exact.tensors[name], rtol=0, atol=1e-6)


class Twice(nn.Module):
    """One biased layer used at two places."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        once: Tensor = self.shared(x).relu()
        return self.shared(once)


def test_a_shared_layer_keeps_the_mean_over_its_uses() -> None:
    data = Data(torch.rand(40, 6, generator=torch.Generator().manual_seed(2)), None, "uniform")
    network = capture(Twice(), data.inputs)
    (layer,) = network.layers
    profile, arrays = measure_profile(network, data, parse_options("w2"))
    finalized = finalize_nearest(network, solve_plan(profile, arrays, "30b", "layer"))
    assert layer.bias is not None
    shift = correct_biases(network, data, finalized).biases[layer.bias] - network.tensors[layer.bias]
    delta = finalized.tensors(network)[layer.weight] - network.weight(layer)
    with torch.inference_mode():
        once = (data.inputs @ network.weight(layer).T + network.tensors[layer.bias]).relu()
    expected = -(data.inputs.mean(0) + once.mean(0)) / 2 @ delta.T
    torch.testing.assert_close(shift, expected, rtol=1e-4, atol=1e-5)


def test_tokens_folded_into_the_samples_count_as_positions() -> None:
    class Folded(nn.Module):
        def __init__(self, fold: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.fold, self.first, self.last = fold, nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x.reshape(-1, 8)).reshape(x.shape[0], -1, 8) if self.fold else self.first(x)
            return self.last(y.relu().mean(1))

    data = Data(torch.randn(70, 12, 8, generator=torch.Generator().manual_seed(0)) + 1, None, "noise")
    found = []
    for fold in (False, True):
        network = capture(Folded(fold).eval(), data.inputs[:2])
        profile, arrays = measure_profile(network, data, parse_options("w2"))
        rounded = finalize_nearest(network, solve_plan(profile, arrays, "30b", "layer"))
        found.append(correct_biases(network, data, rounded).biases)
    for name, bias in found[0].items():
        torch.testing.assert_close(found[1][name], bias, rtol=1e-4, atol=1e-5)


def test_a_layer_that_nothing_reaches_keeps_its_bias() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.one, self.other, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            chosen = (x[:, 0] > 100).nonzero()[:, 0]
            return self.last(self.one(x).index_add(0, chosen, self.other(x[chosen])))

    data = Data(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), None, "noise")
    network = capture(Experts().eval(), data.inputs[:2])
    profile, arrays = measure_profile(network, data, parse_options("w2"))
    rounded = finalize_nearest(network, solve_plan(profile, arrays, "30b", "layer"))
    corrected = correct_biases(network, data, rounded)
    assert torch.equal(corrected.biases["other.bias"], network.tensors["other.bias"])
    Gptq().finalize(network, solve_plan(profile, arrays, "30b", "layer"), data)
