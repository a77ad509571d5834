"""Projections: two fast forms against a weight gradient per sample by autograd."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from apportion.errors import InputError
from apportion.network import Layer, LayerCall, from_rows
from apportion.sensitivity import projections

SAMPLES, DRAWS = 3, 2
# Sums of a few hundred float32 products, in another order.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Case:
    """A layer, how it is used, and the shape of one sample that enters it."""

    layer: Layer
    call: LayerCall
    sample: tuple[int, ...]

    def outputs(self, inputs: Tensor, weight: Tensor) -> Tensor:
        """The layer without its bias, by PyTorch's own operators."""
        if self.layer.kind == "linear":
            return inputs @ (weight if self.layer.transposed else weight.T)
        pads = [side for pair in reversed(self.call.padding) for side in pair]
        rank = len(self.call.stride)
        convolution = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d}[rank]
        padded = torch.nn.functional.pad(inputs, pads)
        return convolution(padded, weight, None, self.call.stride, 0, self.call.dilation, self.layer.groups)


def linear(sample: tuple[int, ...], channels: int, *, transposed: bool = False) -> Case:
    fan_in = sample[-1]
    shape = (fan_in, channels) if transposed else (channels, fan_in)
    layer = Layer("l", "linear", "l.weight", None, shape, transposed, channels, fan_in, 1, 0, ("l",))
    return Case(layer, LayerCall(layer, "l"), sample)


def conv(
    sample: tuple[int, ...],
    channels: int,
    kernel: tuple[int, ...],
    *,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    dilation: int = 1,
    groups: int = 1,
) -> Case:
    shape = (channels, sample[0] // groups, *kernel)
    fan_in = torch.Size(shape[1:]).numel()
    layer = Layer("c", "conv", "c.weight", None, shape, False, channels, fan_in, groups, 0, ("c",))
    rank = len(kernel)
    call = LayerCall(layer, "c", (stride,) * rank, (padding,) * rank, (dilation,) * rank, groups)
    return Case(layer, call, sample)


CASES = {
    "conv2d": conv((3, 6, 5), 4, (3, 3), padding=(1, 1)),
    "strided": conv((3, 7, 6), 4, (3, 2), stride=2, padding=(1, 1)),
    "dilated": conv((2, 9, 8), 3, (3, 3), dilation=2, padding=(2, 2)),
    "padded on one side": conv((2, 5, 5), 3, (2, 2), padding=(0, 1)),
    "grouped": conv((6, 5, 5), 4, (3, 3), groups=2, padding=(1, 1)),
    "depthwise": conv((5, 6, 6), 5, (3, 3), groups=5, stride=2, padding=(1, 1)),
    "depthwise with a multiplier": conv((3, 5, 5), 6, (3, 3), groups=3),
    "pointwise": conv((6, 4, 4), 5, (1, 1)),
    "strided, dilated, grouped and padded": conv(
        (4, 11, 9), 6, (3, 2), stride=3, dilation=2, groups=2, padding=(2, 1)
    ),
    "conv1d": conv((4, 12), 5, (3,), stride=2, padding=(1, 1)),
    "grouped conv1d": conv((4, 12), 6, (5,), dilation=2, groups=2),
    "linear": linear((7,), 5),
    "linear with one token": linear((1, 7), 5),
    "linear with tokens": linear((9, 7), 5),
    "linear with a grid of tokens": linear((3, 4, 7), 5),
    "transposed linear": linear((7,), 5, transposed=True),
    "transposed linear with tokens": linear((6, 7), 5, transposed=True),
}


@dataclass(frozen=True)
class Drawn:
    inputs: Tensor
    cotangents: list[Tensor]
    deltas: Tensor


def draw(case: Case, options: int) -> Drawn:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    inputs = normal(SAMPLES, *case.sample)
    shape = case.outputs(inputs, normal(*case.layer.shape)).shape
    deltas = normal(case.layer.channels, options, case.layer.fan_in)
    return Drawn(inputs, [normal(*shape) for _ in range(DRAWS)], deltas)


def by_autograd(case: Case, drawn: Drawn) -> Tensor:
    """``< dz_r / dW[c] at sample n , dW(o)[c] >``, one sample, draw, channel and option after another."""
    channels, options, _ = drawn.deltas.shape
    result = torch.zeros(channels, SAMPLES, DRAWS, options)
    for sample in range(SAMPLES):
        for index, cotangent in enumerate(drawn.cotangents):
            weight = torch.zeros(case.layer.shape, requires_grad=True)
            output = case.outputs(drawn.inputs[sample : sample + 1], weight)
            (gradient,) = torch.autograd.grad(output, weight, cotangent[sample : sample + 1])
            for option in range(options):
                delta = from_rows(case.layer, drawn.deltas[:, option])
                product = gradient * delta
                rows = product.T if case.layer.transposed else product
                result[:, sample, index, option] = rows.flatten(1).sum(1)
    return result


@pytest.fixture(params=["_through_gradient", "_through_output"])
def one_form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes one of the two internal forms for every layer, whatever it costs."""
    form = getattr(projections, request.param)
    monkeypatch.setattr(projections, "_through_gradient", form)
    monkeypatch.setattr(projections, "_through_output", form)


@pytest.mark.usefixtures("one_form")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_each_form_equals_the_weight_gradient_of_each_sample_times_the_perturbation(case: Case) -> None:
    drawn = draw(case, options=3)
    found = projections.project(case.layer, case.call, drawn.inputs, drawn.cotangents, drawn.deltas)
    torch.testing.assert_close(found, by_autograd(case, drawn), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("options", [1, 40])
@pytest.mark.parametrize("name", ["conv2d", "depthwise", "linear", "linear with tokens"])
def test_the_cheaper_form_is_right_for_few_and_for_many_options(name: str, options: int) -> None:
    case = CASES[name]
    drawn = draw(case, options)
    found = projections.project(case.layer, case.call, drawn.inputs, drawn.cotangents, drawn.deltas)
    torch.testing.assert_close(found, by_autograd(case, drawn), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.usefixtures("one_form")
@pytest.mark.parametrize("name", ["grouped", "depthwise with a multiplier", "linear with tokens"])
def test_the_pieces_that_bound_memory_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    drawn = draw(case, options=3)
    whole = projections.project(case.layer, case.call, drawn.inputs, drawn.cotangents, drawn.deltas)
    monkeypatch.setattr(projections, "UNFOLDED_FLOATS", 1)
    monkeypatch.setattr(projections, "GRADIENT_FLOATS", 1)
    pieces = projections.project(case.layer, case.call, drawn.inputs, drawn.cotangents, drawn.deltas)
    torch.testing.assert_close(pieces, whole, rtol=TOLERANCE, atol=TOLERANCE)


def test_options_that_change_nothing_have_no_effect() -> None:
    case = CASES["conv2d"]
    drawn = draw(case, options=2)
    drawn.deltas[:, 1] = 0
    found = projections.project(case.layer, case.call, drawn.inputs, drawn.cotangents, drawn.deltas)
    assert bool((found[..., 1] == 0).all())
    assert bool((found[..., 0] != 0).all())


def test_tokens_folded_into_the_axis_of_samples_are_unfolded_sample_by_sample() -> None:
    case = linear((7,), 5)
    tokens = torch.randn(SAMPLES, 4, 7)
    assert torch.equal(projections.by_sample(case.call, tokens.flatten(0, 1), SAMPLES), tokens)
    assert projections.by_sample(case.call, tokens, SAMPLES) is tokens
    with pytest.raises(InputError, match=r"layer 'l': for 3 samples its axis 0 has 4"):
        projections.by_sample(case.call, tokens[0], SAMPLES)
