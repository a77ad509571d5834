"""Bias tuning: biases alone change, for the better or not at all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from apportion.allocator import Plan
from apportion.errors import InputError
from apportion.network import Data, Network, capture
from apportion.reconstruct import (
    Finalized,
    correct_biases,
    finalize_nearest,
    measure_finalized,
    tune_biases,
)
from apportion.reconstruct.bias_tuning import HELD_OUT
from apportion.reconstruct.held_out import learned_and_judged

PlanOf = Callable[..., Plan]


@pytest.fixture(scope="module")
def rounded(network: Network, plan_of: PlanOf) -> Finalized:
    """All layers at 2 bits."""
    return finalize_nearest(network, plan_of(network, ["w2"]))


def judge_of(data: Data) -> Data:
    return Data(data.inputs[learned_and_judged(len(data.inputs), HELD_OUT)[1].start :], None, "judge")


def test_digits_at_two_bits_lose_less_when_tuned(network: Network, data: Data, rounded: Finalized) -> None:
    before = measure_finalized(network, rounded, data).loss
    tuned = tune_biases(network, data, rounded, iterations=75, rate=1e-2)
    assert measure_finalized(network, tuned, data).loss < 0.8 * before
    assert tuned.layers is rounded.layers
    assert set(tuned.biases) == {layer.bias for layer in network.layers if layer.bias is not None}
    assert rounded.biases == {}


@pytest.mark.parametrize("rate", [1e-2, 1e2])
def test_what_is_returned_is_never_worse_on_the_data_that_judges(
    network: Network, data: Data, rounded: Finalized, rate: float
) -> None:
    judge = judge_of(data)
    before = measure_finalized(network, rounded, judge).loss
    tuned = tune_biases(network, data, rounded, iterations=50, rate=rate)
    assert measure_finalized(network, tuned, judge).loss <= before
    if rate > 1:
        assert tuned.biases == {}


def test_seeds_repeat_and_differ(network: Network, data: Data, rounded: Finalized) -> None:
    first, second, other = (tune_biases(network, data, rounded, seed, iterations=25) for seed in (1, 1, 2))
    assert first.biases
    assert all(torch.equal(first.biases[name], second.biases[name]) for name in first.biases)
    assert any(not torch.equal(first.biases[name], other.biases[name]) for name in first.biases)


def test_the_weights_of_the_network_are_left_without_slopes(
    network: Network, data: Data, rounded: Finalized
) -> None:
    before = {name: tensor.clone() for name, tensor in network.tensors.items()}
    tuned = tune_biases(network, data, rounded, iterations=25)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.tensors.items())
    assert not any(bias.requires_grad for bias in tuned.biases.values())


class NoBias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x)
        return out


def test_without_any_bias_nothing_is_done(plan_of: PlanOf) -> None:
    data = Data(torch.rand(8, 4), None, "uniform")
    network = capture(NoBias(), data.inputs[:2])
    rounded = finalize_nearest(network, plan_of(network, ["w2"]))
    assert tune_biases(network, data, rounded) is rounded
    assert correct_biases(network, data, rounded).biases == {}


@pytest.mark.parametrize(
    ("iterations", "rate", "reason"),
    [
        (0, 1e-2, r"bias tuning has iterations 0; it is between 1 and"),
        (10, float("nan"), r"bias tuning has rate nan; it is between"),
    ],
)
def test_settings_outside_their_range_are_refused(
    network: Network, data: Data, rounded: Finalized, iterations: int, rate: float, reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        tune_biases(network, data, rounded, iterations=iterations, rate=rate)


class Gated(nn.Module):
    """A gate that is open or closed lets no slope through, nor does an answer that is one of two."""

    def __init__(self, *, answers: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.gate, self.last = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(16, 3)
        self.answers = answers

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.first(x) * (self.gate(x) > 0).float())
        return (out > 0).float() if self.answers else out


@pytest.mark.parametrize("answers", [False, True])
def test_biases_that_no_slope_reaches_stay(plan_of: PlanOf, answers: bool) -> None:
    data = Data(torch.randn(512, 6, generator=torch.Generator().manual_seed(0)), None, "normal")
    network = capture(Gated(answers=answers).eval(), data.inputs[:2])
    rounded = finalize_nearest(network, plan_of(network, ["w2"]))
    tuned = tune_biases(network, data, rounded, iterations=75)
    if answers:
        assert tuned is rounded
    else:
        assert set(tuned.biases) == {"first.bias", "gate.bias", "last.bias"}
        assert torch.equal(tuned.biases["gate.bias"], network.tensors["gate.bias"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_biases_in_half_precision_are_tuned_too(plan_of: PlanOf, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 5)).eval()
    data = Data(torch.randn(256, 16).to(dtype), None, "normal")
    network = capture(module.to(dtype), data.inputs[:2])
    rounded = finalize_nearest(network, plan_of(network, ["w2"]))
    tuned = tune_biases(network, data, rounded, iterations=75)
    before, after = (measure_finalized(network, each, data).loss for each in (rounded, tuned))
    assert after < 0.9 * before
    assert {bias.dtype for bias in tuned.biases.values()} == {dtype}
