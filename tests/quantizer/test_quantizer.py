"""Whole weights: units of steps, independence of channels, and what dequantizing gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apportion.errors import InputError
from apportion.quantizer import (
    Option,
    PointFit,
    QuantizedRows,
    Quantizer,
    Rounding,
    StepSearch,
    StepUnit,
    fit_point,
    pack_codes,
    parse_option,
    steps_to_half,
)

OPTIONS = ["w4", "w2x2", "w8t", "w2x2t", "w3g8", "w2x3g8", "w4x2", "w3x4"]
quantizers = st.sampled_from(
    [
        Quantizer(),
        Quantizer(fit=PointFit.GREEDY),
        Quantizer(search=StepSearch.MIN_MAX),
        Quantizer(search=StepSearch.P_NORM, p=3.0),
        Quantizer(rounding=Rounding.FLOOR),
    ]
)


def seeded(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dequantized_one_by_one(quantized: QuantizedRows) -> Tensor:
    """The slow and obvious form: every weight looks up the step of its channel and group."""
    option = quantized.option
    points, channels, fan_in = quantized.codes.shape
    values = torch.zeros(channels, fan_in)
    for channel in range(channels):
        for weight in range(fan_in):
            for point in range(points):
                row = 0 if option.unit is StepUnit.TENSOR else channel
                group = weight // option.group if option.unit is StepUnit.GROUP else 0
                step = quantized.steps[point, row, group]
                values[channel, weight] += step * quantized.codes[point, channel, weight]
    return values


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.integers(0, 2**16), st.sampled_from(OPTIONS), quantizers, st.integers(1, 4), st.integers(8, 21))
def test_dequantizing_sums_step_times_code_of_every_point(
    seed: int, text: str, quantizer: Quantizer, channels: int, fan_in: int
) -> None:
    quantized = quantizer.quantize(seeded(seed, channels, fan_in), parse_option(text))
    torch.testing.assert_close(quantized.dequantize(), dequantized_one_by_one(quantized), rtol=0, atol=0)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.integers(1, 8),
    st.integers(1, 3),
    st.sampled_from(list(StepUnit)),
    st.integers(1, 5),
    st.integers(1, 20),
    st.data(),
)
def test_the_size_is_what_the_packed_codes_and_the_halves_of_the_steps_take(
    bits: int, points: int, unit: StepUnit, channels: int, fan_in: int, data: st.DataObject
) -> None:
    group = data.draw(st.integers(1, fan_in)) if unit is StepUnit.GROUP else 0
    option = Option(bits, points, unit, group)
    quantized = Quantizer(fit=PointFit.GREEDY).quantize(seeded(0, channels, fan_in), option)
    half, _ = steps_to_half(quantized.steps)
    size_bits = option.size_bits(channels, fan_in)
    assert quantized.codes.numel() * bits + half.numel() * half.itemsize * 8 == size_bits
    # Packing fills the last byte.
    assert 0 <= (len(pack_codes(quantized.codes, bits)) + half.nbytes) * 8 - size_bits < 8


@pytest.mark.parametrize(
    "text", ["w1", "w1x3", "w1x3g16", "w2", "w8", "w2x2", "w2x4", "w4x2", "w3x3", "w4g16", "w2x2g16"]
)
@pytest.mark.parametrize("fit", PointFit)
def test_a_channel_is_quantized_the_same_whatever_is_beside_it(text: str, fit: PointFit) -> None:
    # 700 rows of 300 weights take two pieces, and a subset moves the border between them.
    rows = seeded(0, 700, 300) * torch.linspace(0.01, 3, 700)[:, None]
    quantizer, option = Quantizer(fit=fit), parse_option(text)
    whole = quantizer.quantize(rows, option)
    for index in (torch.tensor([699]), torch.arange(5, 700, 37), torch.tensor([450, 3, 449, 3])):
        part = quantizer.quantize(rows[index], option)
        chosen = whole.channels(index)
        assert torch.equal(part.codes, chosen.codes)
        assert torch.equal(part.steps, chosen.steps)


@pytest.mark.parametrize("text", OPTIONS)
def test_choosing_channels_and_dequantizing_can_be_swapped(text: str) -> None:
    quantized = Quantizer().quantize(seeded(1, 9, 20), parse_option(text))
    index = torch.tensor([4, 0, 8])
    chosen = quantized.channels(index)
    assert chosen.option == quantized.option
    assert torch.equal(chosen.dequantize(), quantized.dequantize()[index])


def test_units_are_rows_cut_or_joined() -> None:
    rows = seeded(2, 6, 24)
    quantizer = Quantizer()
    by_tensor = quantizer.quantize(rows, parse_option("w4t"))
    assert by_tensor.steps.shape == (1, 1, 1)
    assert torch.equal(
        by_tensor.dequantize(),
        quantizer.quantize(rows.view(1, -1), parse_option("w4")).dequantize().view(6, 24),
    )
    by_group = quantizer.quantize(rows, parse_option("w4g8"))
    assert by_group.steps.shape == (1, 6, 3)
    assert torch.equal(
        by_group.dequantize(),
        quantizer.quantize(rows.view(18, 8), parse_option("w4")).dequantize().view(6, 24),
    )


def test_a_short_last_group_has_a_step_of_its_own() -> None:
    rows = seeded(3, 2, 10)
    rows[:, 8:] *= 1e-3
    quantized = Quantizer().quantize(rows, parse_option("w8g4"))
    assert quantized.codes.shape == (1, 2, 10)
    assert quantized.steps.shape == (1, 2, 3)
    error = (quantized.dequantize() - rows)[:, 8:].abs()
    # Half a step of 8 bits over the largest of the two weights.
    assert bool((error <= rows[:, 8:].abs().amax(1, keepdim=True) / 127).all())


def test_floor_rounding_takes_the_code_below() -> None:
    rows = seeded(4, 5, 40)
    quantized = Quantizer(rounding=Rounding.FLOOR).quantize(rows, parse_option("w5"))
    steps = quantized.steps[0]
    assert torch.equal(quantized.codes[0], (rows / steps).floor().clamp(-16, 15).to(torch.int8))
    nearest = Quantizer().quantize(rows, parse_option("w5"))
    assert float((quantized.dequantize() - rows).square().sum()) > float(
        (nearest.dequantize() - rows).square().sum()
    )


def test_several_points_with_floor_rounding_or_another_norm_take_the_greedy_form() -> None:
    rows = seeded(5, 5, 40)
    option = parse_option("w3x2")
    for quantizer in (Quantizer(rounding=Rounding.FLOOR), Quantizer(search=StepSearch.P_NORM, p=4.0)):
        first = fit_point(rows, 3, search=quantizer.search, p=quantizer.p, rounding=quantizer.rounding)
        quantized = quantizer.quantize(rows, option)
        assert torch.equal(quantized.codes[0], first.codes[0])
        assert torch.equal(quantized.steps[0, :, 0], first.steps[0])


def test_weights_that_need_a_gradient_and_doubles_are_read_as_single_precision() -> None:
    rows = seeded(6, 3, 12)
    expected = Quantizer().quantize(rows, parse_option("w4x2"))
    found = Quantizer().quantize(rows.double().requires_grad_(), parse_option("w4x2"))
    assert torch.equal(found.codes, expected.codes)
    assert not found.steps.requires_grad


def test_a_group_longer_than_a_channel_is_refused() -> None:
    with pytest.raises(InputError, match="groups of 64 weights, but a channel has only 9; use a group of at"):
        Quantizer().quantize(seeded(0, 2, 9), parse_option("w4g64"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    rows = seeded(0, 2, 9)
    rows[1, 3] = value
    with pytest.raises(InputError, match="1 of 18 weights are NaN or infinite"):
        Quantizer().quantize(rows, parse_option("w4"))


@settings(derandomize=True, deadline=None)
@given(quantizers)
def test_a_quantizer_is_read_back_from_its_settings(quantizer: Quantizer) -> None:
    assert Quantizer.from_settings(quantizer.settings()) == quantizer


def test_settings_that_name_no_quantizer_are_refused() -> None:
    with pytest.raises(InputError, match=r"is no quantizer .* search \(minmax, mse, pnorm\)"):
        Quantizer.from_settings({**Quantizer().settings(), "search": "best"})
    with pytest.raises(InputError, match="is no quantizer"):
        Quantizer.from_settings({"search": "mse"})
