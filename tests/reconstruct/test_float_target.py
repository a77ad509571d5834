"""Aiming at the float output: as far as samples that were not fitted confirm it, and no further."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from apportion.network import LayerCall, Network
from apportion.reconstruct import InputGram
from apportion.reconstruct.float_target import aimed_weight


def grams(quantized: Tensor, floating: Tensor) -> InputGram:
    """Sums over rows of inputs, with those of the first half."""
    half = len(quantized) // 2

    def of(part: slice, inner: InputGram | None) -> InputGram:
        x, y = quantized[part].double(), floating[part].double()
        return InputGram(2 * (x.T @ x)[None], 2 * (y.T @ x)[None], half=inner)

    return of(slice(None), of(slice(half), None))


def drawn(count: int, fan_in: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    """Float inputs, a mixing that the quantized network adds to them, and noise that it adds."""
    generator = torch.Generator().manual_seed(count)
    floating = torch.randn(count, fan_in, generator=generator)
    mixing = 0.1 * torch.randn(fan_in, fan_in, generator=torch.Generator().manual_seed(7))
    noise = torch.randn(count, fan_in, generator=generator)
    return floating, mixing, noise


def error(weight: Tensor, aimed: Tensor, quantized: Tensor, floating: Tensor) -> float:
    """Mean squared difference to the float output."""
    return float((quantized @ aimed[0].T - floating @ weight[0].T).square().mean())


WEIGHT = torch.randn(1, 10, 24, generator=torch.Generator().manual_seed(3))


def test_what_is_the_same_in_all_samples_is_made_up_for() -> None:
    floating, mixing, _ = drawn(4000)
    quantized = floating + floating @ mixing
    aimed = aimed_weight(WEIGHT, grams(quantized, floating))
    fresh, _, _ = drawn(500)
    before = error(WEIGHT, WEIGHT, fresh + fresh @ mixing, fresh)
    assert error(WEIGHT, aimed, fresh + fresh @ mixing, fresh) < 0.01 * before


def test_hardly_more_samples_than_inputs_are_not_fitted_exactly() -> None:
    floating, mixing, noise = drawn(28)
    quantized = floating + floating @ mixing + 0.5 * noise
    inputs = grams(quantized, floating)
    assert inputs.cross is not None
    exact = WEIGHT @ (inputs.cross @ torch.linalg.inv(inputs.gram)).float()
    aimed = aimed_weight(WEIGHT, inputs)
    fresh, _, more = drawn(2000)
    others = fresh + fresh @ mixing + 0.5 * more
    at_start, fitted = (error(WEIGHT, each, others, fresh) for each in (WEIGHT, exact))
    assert fitted > at_start
    assert error(WEIGHT, aimed, others, fresh) < at_start


def test_the_weight_stays_where_no_other_sample_confirms_a_move() -> None:
    floating, _, _ = drawn(64)
    same = grams(floating, floating)
    assert torch.equal(aimed_weight(WEIGHT, same), WEIGHT)
    # Of a single sample there are no others.
    one = grams(floating[:1], 2 * floating[:1])
    assert one.half is not None
    alone = InputGram(one.gram, one.cross, half=InputGram(one.gram, one.cross))
    assert torch.equal(aimed_weight(WEIGHT, alone), WEIGHT)


def test_no_position_counts_more_than_three_of_nine_in_ten(network: Network) -> None:
    layer = next(layer for layer in network.layers if layer.kind == "linear")
    x = torch.randn(101, layer.fan_in, generator=torch.Generator().manual_seed(0))
    x[7] *= 100
    gram = InputGram.empty(1, layer.fan_in, x.device, levelled=True)
    gram.add(LayerCall(layer, layer.products[0]), x)
    # Of each of the two halves whose sums are kept.
    limits = [3 * half.square().sum(1).sort().values[45] for half in (x[:51], x[51:])]
    limit = torch.cat([limits[0].expand(51), limits[1].expand(50)])
    weights = (limit / x.square().sum(1)).clamp(max=1.0)
    assert int((weights < 1).sum()) == 1
    expected = 2 * (x.T @ (weights[:, None] * x)).double()
    torch.testing.assert_close(gram.gram[0], expected, rtol=1e-4, atol=1e-3)


def test_inputs_that_are_mostly_zero_all_count(network: Network) -> None:
    layer = next(layer for layer in network.layers if layer.kind == "linear")
    x = torch.zeros(20, layer.fan_in)
    x[0] = torch.randn(layer.fan_in, generator=torch.Generator().manual_seed(0))
    gram = InputGram.empty(1, layer.fan_in, x.device, levelled=True)
    gram.add(LayerCall(layer, layer.products[0]), x)
    torch.testing.assert_close(gram.gram[0], 2 * (x.T @ x).double(), rtol=1e-5, atol=1e-5)


def test_sums_are_kept_of_one_half_of_every_batch(network: Network) -> None:
    layer = next(layer for layer in network.layers if layer.kind == "linear")
    call = LayerCall(layer, layer.products[0])
    x = torch.randn(9, layer.fan_in, generator=torch.Generator().manual_seed(0))
    y = x + 1
    gram = InputGram.empty(1, layer.fan_in, x.device, cross=True)
    gram.add(call, x, y)
    whole, half = gram, gram.half
    assert half is not None
    assert whole.cross is not None
    assert half.cross is not None
    torch.testing.assert_close(whole.gram[0], 2 * (x.T @ x).double(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(whole.cross[0], 2 * (y.T @ x).double(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(half.gram[0], 2 * (x[:5].T @ x[:5]).double(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(half.cross[0], 2 * (y[:5].T @ x[:5]).double(), rtol=1e-5, atol=1e-4)
    rest = whole.without(half)
    torch.testing.assert_close(rest.gram[0], 2 * (x[5:].T @ x[5:]).double(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_sums_of_half_precision_inputs_are_those_of_the_same_numbers_in_single(
    network: Network, kind: torch.dtype
) -> None:
    layer = next(layer for layer in network.layers if layer.kind == "linear")
    call = LayerCall(layer, layer.products[0])
    x = (4 * torch.randn(2000, layer.fan_in, generator=torch.Generator().manual_seed(0))).to(kind)
    halved, single = (InputGram.empty(1, layer.fan_in, x.device) for _ in range(2))
    halved.add(call, x)
    single.add(call, x.float())
    assert torch.equal(halved.gram, single.gram)
