"""What is learned of networks in half precision is what is learned of the same numbers in float32."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from apportion.allocator import LayerCut, Plan
from apportion.network import Data, Network
from apportion.quantizer import Quantizer, parse_options
from apportion.reconstruct import (
    BlockOptions,
    LearnedRounding,
    Learning,
    finalize_nearest,
    layer_shapes,
    measure_finalized,
    tune_biases,
)
from apportion.reconstruct.position_weights import position_weights

PlanOf = Callable[..., Plan]
Twins = Callable[..., tuple[Network, Network]]
HALF = [torch.float16, torch.bfloat16]
# Learned biases are rounded to half precision at every step, to 8 significant bits in one of its types.
STORED = 0.1


@pytest.fixture(scope="module")
def noise() -> Data:
    return Data(torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0)), None, "normal")


@pytest.mark.parametrize("kind", HALF)
def test_positions_count_alike(twins: Twins, kind: torch.dtype, noise: Data) -> None:
    half, single = (position_weights(network, noise) for network in twins(kind, noise, sure=3.0))
    assert half.keys() == single.keys()
    assert bool((half["conv2d"].float().std(1) > 0).all())
    for name, weights in half.items():
        assert torch.equal(weights, single[name])


@pytest.mark.parametrize("kind", HALF)
@pytest.mark.parametrize("fisher", [False, True])
def test_the_same_rounding_is_learned(
    twins: Twins, kind: torch.dtype, noise: Data, plan_of: PlanOf, fisher: bool
) -> None:
    method = LearnedRounding(start=None, fisher=fisher, learning=Learning(iterations=20, rate=0.1))
    half, single = (
        method.finalize(network, plan_of(network, ["w3"]), noise) for network in twins(kind, noise, sure=3.0)
    )
    for one, other in zip(half.layers, single.layers, strict=True):
        assert torch.equal(one.dequantize(), other.dequantize())


@pytest.mark.parametrize("kind", HALF)
def test_options_are_learned_alike(twins: Twins, kind: torch.dtype, noise: Data) -> None:
    method, options = LearnedRounding(learning=Learning(iterations=20, rate=0.1)), parse_options("w2,w3")
    found = []
    for network in twins(kind, noise, sure=3.0):
        made, layer = BlockOptions(network, noise, Quantizer(), options, method), network.layers[1]
        found.append(made(layer, options, LayerCut.of(layer_shapes(network)[layer.name], None)))
    assert torch.equal(*found)


@pytest.mark.parametrize("kind", HALF)
def test_biases_are_tuned_alike(twins: Twins, kind: torch.dtype, noise: Data, plan_of: PlanOf) -> None:
    # Of a bias that is much larger than what learning moves it by, half precision keeps no such move.
    tuned, networks = [], twins(kind, noise, sure=0.0)
    for network in networks:
        rounded = finalize_nearest(network, plan_of(network, ["w2"]))
        tuned.append(tune_biases(network, noise, rounded, iterations=25))
        before, after = (measure_finalized(network, each, noise).loss for each in (rounded, tuned[-1]))
        assert after < 0.8 * before
    for name, bias in tuned[0].biases.items():
        assert bias.dtype == kind
        start, found = networks[1].tensors[name], tuned[1].biases[name]
        torch.testing.assert_close(
            bias.float(), found, rtol=0, atol=STORED * float((found - start).abs().max())
        )
