"""AdaQuant: its error is the layer's own, it beats its start or keeps it, and everything stays storable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from apportion.allocator import Plan
from apportion.errors import InputError
from apportion.network import Data, Network, capture
from apportion.quantizer import Quantizer, parse_option
from apportion.reconstruct import (
    AdaQuant,
    Finalized,
    Gptq,
    InputGram,
    StoredLayer,
    StoredPart,
    StraightThrough,
    finalize_nearest,
    measure_finalized,
)
from apportion.reconstruct.gptq import gptq_layer
from apportion.reconstruct.output_error import OutputError
from apportion.reconstruct.straight_through import learn_layer

Check = Callable[[Network, Plan, Finalized], None]
QUICK = StraightThrough(iterations=50)
FROM_NEAREST = AdaQuant(start=None, held_out=0.25, learning=QUICK)


def drawn(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Correlated inputs of both networks with a last 1, shape (positions, 9), a weight and a bias."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(200, 8, generator=generator) @ torch.randn(8, 8, generator=generator) + 0.5
    noisy = base + 0.1 * torch.randn(200, 8, generator=generator)
    ones = torch.ones(200, 1)
    weight, bias = torch.randn(5, 8, generator=generator), torch.randn(5, generator=generator)
    return torch.cat([noisy, ones], 1), torch.cat([base, ones], 1), weight, bias


def error_of(inputs: Tensor, floating: Tensor, weight: Tensor, bias: Tensor) -> OutputError:
    wide, target = inputs.double(), torch.cat([weight, bias[:, None]], 1)
    gram = InputGram(2 * (wide.T @ wide)[None], 2 * (floating.double().T @ wide)[None], with_one=True)
    return OutputError.of(gram, target)


def test_the_error_is_the_squared_difference_of_outputs_up_to_a_constant() -> None:
    inputs, floating, weight, bias = drawn()
    error = error_of(inputs, floating, weight, bias)
    target = floating.double() @ torch.cat([weight, bias[:, None]], 1).double().T
    constant = 2 * target.square().sum(0)
    other = torch.randn(5, 9, generator=torch.Generator().manual_seed(9)).double()
    expected = 2 * (inputs.double() @ other.T - target).square().sum(0)
    torch.testing.assert_close(error.of_rows(other) + constant, expected, rtol=1e-9, atol=0)
    leaning = other.clone().requires_grad_()
    (slope,) = torch.autograd.grad(error.of_rows(leaning).sum(), leaning)
    torch.testing.assert_close(error.slope(other), slope / 2, rtol=1e-9, atol=1e-9)


def test_the_best_bias_leaves_no_slope_and_the_reduced_error_has_it_built_in() -> None:
    inputs, floating, weight, bias = drawn()
    error = error_of(inputs, floating, weight, bias)
    rough = (weight * 2).round() / 2
    full = torch.cat([rough.double(), error.best_bias(rough)[:, None]], 1)
    # Sums of 200 products of order 10.
    torch.testing.assert_close(error.slope(full)[:, -1], torch.zeros(5).double(), rtol=0, atol=1e-8)
    difference = error.of_rows(full) - error.at_best_bias().of_rows(rough)
    exact = torch.cat([weight.double(), error.best_bias(weight)[:, None]], 1)
    # The constants of the two forms differ, and by the same for all weights.
    torch.testing.assert_close(
        difference, error.of_rows(exact) - error.at_best_bias().of_rows(weight), rtol=1e-9, atol=1e-6
    )


@pytest.mark.parametrize(
    "option", ["w1", "w1x3", "w2", "w3", "w2x2", "w4x3", "w3t", "w2x2t", "w3g5", "w2x2g3"]
)
def test_learning_a_layer_lowers_its_error_on_correlated_inputs(option: str) -> None:
    inputs, floating, weight, bias = drawn()
    error = error_of(inputs, floating, weight, bias).at_best_bias()
    stored = Quantizer().quantize(weight, parse_option(option))
    nearest = StoredLayer("layer", (StoredPart(torch.arange(5), stored),))
    before = error.of_rows(nearest.dequantize())
    after = error.of_rows(learn_layer(nearest, error, QUICK).dequantize())
    assert float(after.sum()) < float(before.sum())
    if "t" not in option:
        # Channels that share no step: none pays for another; compared in single precision.
        assert bool((after <= before + 1e-6 * before.abs()).all())


def test_weights_and_inputs_of_another_scale_are_learned_just_the_same() -> None:
    inputs, floating, weight, bias = drawn()

    def learned(of_weight: float, of_inputs: float) -> StoredLayer:
        part = StoredPart(torch.arange(5), Quantizer().quantize(weight * of_weight, parse_option("w3")))
        error = error_of(inputs * of_inputs, floating * of_inputs, weight * of_weight, bias)
        return learn_layer(StoredLayer("layer", (part,)), error.at_best_bias(), QUICK)

    for of_weight, of_inputs in ((2.0**-20, 1.0), (1.0, 2.0**-20), (2.0**10, 2.0**5)):
        found = learned(of_weight, of_inputs).dequantize() / of_weight
        torch.testing.assert_close(found, learned(1.0, 1.0).dequantize(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("sequential", "start", "option"),
    [(True, None, "w2"), (False, None, "w2"), (True, Gptq(), "w3"), (False, Gptq(), "w2x2")],
)
def test_digits_lose_far_less_than_with_nearest(
    network: Network,
    plan_of: Callable[..., Plan],
    data: Data,
    sequential: bool,
    start: Gptq | None,
    option: str,
) -> None:
    chosen = plan_of(network, [option])
    method = replace(FROM_NEAREST, sequential=sequential, start=start)
    nearest = measure_finalized(network, finalize_nearest(network, chosen), data).loss
    assert measure_finalized(network, method.finalize(network, chosen, data), data).loss < 0.6 * nearest


@pytest.mark.parametrize(
    ("options", "cut", "sequential"),
    [
        (["w3", "w2x2", "w8", "w2", "w3x3"], None, True),
        (["w3", "w2x2"], None, False),
        (["w2x2t"], None, True),
        (["w3g4", "w2x2g3"], None, True),
        (["w2", "w4"], "inputs:3", True),
    ],
)
def test_every_kind_of_layer_and_option_stays_storable_and_loses_less(
    kinds: Network,
    kinds_data: Data,
    plan_of: Callable[..., Plan],
    check_storable: Check,
    options: list[str],
    cut: str | None,
    sequential: bool,
) -> None:
    chosen = plan_of(kinds, options, cut)
    finalized = replace(FROM_NEAREST, sequential=sequential).finalize(kinds, chosen, kinds_data)
    check_storable(kinds, chosen, finalized)
    nearest = measure_finalized(kinds, finalize_nearest(kinds, chosen), kinds_data).loss
    assert measure_finalized(kinds, finalized, kinds_data).loss < nearest


def test_a_layer_that_does_not_beat_its_start_is_the_start(
    network: Network, plan_of: Callable[..., Plan], data: Data
) -> None:
    chosen = plan_of(network, ["w8"])
    finalized = replace(FROM_NEAREST, sequential=False).finalize(network, chosen, data)
    for after, before, layer in zip(
        finalized.layers, finalize_nearest(network, chosen).layers, network.layers, strict=True
    ):
        if layer.bias is not None and layer.bias not in finalized.biases:
            assert torch.equal(after.dequantize(), before.dequantize())


def test_a_layer_that_does_not_beat_gptq_is_as_gptq_makes_it_from_all_samples(
    plan_of: Callable[..., Plan],
) -> None:
    torch.manual_seed(0)
    data = Data(torch.randn(128, 12), None, "normal")
    layers = nn.Linear(12, 12, bias=False), nn.ReLU(), nn.Linear(12, 5, bias=False)
    network = capture(nn.Sequential(*layers), data.inputs[:2])
    chosen = plan_of(network, ["w3"])
    # Steps that change no code, so that nothing is better than the start.
    still = AdaQuant(held_out=0.5, learning=StraightThrough(iterations=1, rate=1e-9, step_rate=0.0))
    found, gptq = (each.finalize(network, chosen, data) for each in (still, Gptq()))
    for after, before in zip(found.layers, gptq.layers, strict=True):
        assert torch.equal(after.dequantize(), before.dequantize())


def test_without_a_step_rate_the_steps_stay(
    network: Network, plan_of: Callable[..., Plan], data: Data
) -> None:
    chosen = plan_of(network, ["w3", "w2x2"])
    fixed = replace(FROM_NEAREST, learning=replace(QUICK, step_rate=0.0))
    for after, before in zip(
        fixed.finalize(network, chosen, data).layers, finalize_nearest(network, chosen).layers, strict=True
    ):
        for new, old in zip(after.parts, before.parts, strict=True):
            assert torch.equal(new.rows.steps, old.rows.steps)


def test_the_same_arguments_give_the_same_weights_whatever_the_memory(
    network: Network, plan_of: Callable[..., Plan], data: Data
) -> None:
    chosen, told = plan_of(network, ["w2"]), []
    first = FROM_NEAREST.finalize(network, chosen, data, lambda *step: told.append(step))
    second = replace(FROM_NEAREST, memory_bytes=0).finalize(network, chosen, data)
    one, other = first.tensors(network), second.tensors(network)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert told == [(done, 9) for done in range(1, 10)]


def test_one_sample_is_enough(network: Network, plan_of: Callable[..., Plan], data: Data) -> None:
    one = Data(data.inputs[:1], None, data.name)
    method = replace(FROM_NEAREST, learning=StraightThrough(iterations=2))
    assert len(method.finalize(network, plan_of(network, ["w3"]), one).layers) == len(network.layers)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"iterations": 0}, r"AdaQuant has iterations 0; it is between 1 and"),
        ({"rate": float("nan")}, r"AdaQuant has rate nan"),
        ({"step_rate": -0.1}, r"AdaQuant has step_rate -0\.1; it is between 0 and 1"),
    ],
)
def test_learning_outside_its_range_is_refused(given: dict[str, float], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        StraightThrough(**given)  # type: ignore[arg-type]


def test_shares_and_positions_that_are_none_are_refused() -> None:
    with pytest.raises(InputError, match=r"AdaQuant holds out 0 of the calibration data; it is a share"):
        AdaQuant(held_out=0)
    with pytest.raises(InputError, match=r"AdaQuant has 0 positions per weight"):
        AdaQuant(positions=0)


@pytest.mark.parametrize("option", ["w4", "w8", "w6x2", "w8x2"])
def test_no_channel_is_worse_than_its_start_however_little_that_is_off(option: str) -> None:
    # Inputs whose mean is most of what they are, so that outputs are large beside what codes may change.
    generator = torch.Generator().manual_seed(0)
    inputs, weight = torch.rand(200, 48, generator=generator) + 0.5, torch.randn(24, 48, generator=generator)
    gram = InputGram(2 * (inputs.double().T @ inputs.double())[None])
    part = StoredPart(torch.arange(24), Quantizer().quantize(weight, parse_option(option)))
    start = gptq_layer(weight, gram, StoredLayer("layer", (part,)), Gptq())
    learned = learn_layer(start, OutputError.of(gram, weight), QUICK)

    def off(layer: StoredLayer) -> Tensor:
        return ((layer.dequantize().double() - weight.double()) @ inputs.double().T).square().sum(1)

    # Rounding of the products of single precision.
    assert bool((off(learned) <= (1 + 1e-4) * off(start)).all())
