"""Cells: their sums, their steps in 16 bits, and the codes nearest at those steps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.allocator import LayerCut
from apportion.quantizer import Quantizer, parse_option, steps_from_half, steps_to_half
from apportion.reconstruct import StoredLayer, StoredPart
from apportion.reconstruct.cells import cell_sums, nearest_at, storable, with_steps


def drawn(rows: int, weights: int) -> torch.Tensor:
    return torch.randn(rows, weights, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("option", "shape"), [("w3", (4, 1)), ("w3t", (1, 1)), ("w3g5", (4, 3)), ("w3g13", (4, 1))]
)
def test_sums_over_cells_are_those_over_the_weights_of_each_step(option: str, shape: tuple[int, int]) -> None:
    values = drawn(4, 13)
    quantized = Quantizer().quantize(values, parse_option(option))
    sums = cell_sums(values * quantized.codes[0], parse_option(option))
    assert sums.shape == shape == quantized.steps.shape[1:]
    # The derivative of <values, stored weight> by the steps, from the dequantized weight itself.
    steps = quantized.steps.clone().requires_grad_()
    stored = type(quantized)(quantized.option, quantized.codes, steps).dequantize()
    (slope,) = torch.autograd.grad((stored * values).sum(), steps)
    torch.testing.assert_close(sums, slope[0], rtol=1e-5, atol=1e-5)


@settings(derandomize=True, deadline=None)
@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=8), st.integers(-60, 60))
def test_steps_come_back_from_16_bits_as_they_are_and_are_never_zero(
    values: list[float], exponent: int
) -> None:
    steps = torch.ldexp(torch.tensor([values, values[::-1]]), torch.tensor(exponent))
    kept = storable(steps)
    assert torch.equal(storable(kept), kept)
    assert all(torch.equal(steps_from_half(*steps_to_half(point)), point) for point in kept)
    assert bool((kept != 0).all())
    within = steps.abs() > kept.abs().amax() * 2.0**-27
    torch.testing.assert_close(kept[within], steps[within], rtol=2.0**-11, atol=0)


@pytest.mark.parametrize(
    "option", ["w1", "w1x3g4", "w2", "w4", "w2x2", "w3x2", "w3t", "w2x2t", "w3g4", "w2x2g4"]
)
@pytest.mark.parametrize("inputs", [0, 6])
def test_at_its_own_steps_a_rounded_weight_is_as_near_as_it_was_and_at_others_none_is_nearer(
    option: str, inputs: int
) -> None:
    weight = drawn(5, 12)
    cut = LayerCut(5, 12, inputs)
    matrix = cut.to_rows(weight)
    part = StoredPart(torch.arange(len(matrix)), Quantizer().quantize(matrix, parse_option(option)))
    layer = StoredLayer("layer", (part,), cut)
    again = nearest_at(layer, weight)
    torch.testing.assert_close(
        (again.dequantize() - weight).abs(), (layer.dequantize() - weight).abs(), rtol=0, atol=1e-5
    )
    other = nearest_at(with_steps(layer, [part.rows.steps * 1.3]), weight)
    moved = with_steps(layer, [part.rows.steps * 1.3])
    worse = (moved.dequantize() - weight).abs() - (other.dequantize() - weight).abs()
    assert bool((worse >= -1e-6).all())
