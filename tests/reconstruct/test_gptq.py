"""GPTQ: what it does to the error on its Gram matrix, against the recursion written out, and its limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from apportion.allocator import Plan
from apportion.errors import InputError
from apportion.network import Data, Network, capture, rows
from apportion.quantizer import parse_options
from apportion.reconstruct import (
    Finalized,
    Gptq,
    InputGram,
    StoredLayer,
    finalize_nearest,
    gptq_layer,
    measure_finalized,
)
from apportion.reconstruct.cells import storable, with_steps
from apportion.sensitivity import measure_profile, solve_plan

from .conftest import row_errors, stored

PlanOf = Callable[..., Plan]
Assign = Callable[[Mapping[str, Sequence[str]]], Plan]
MIX = ("w3", "w2x2", "w8", "w2", "w4x3")


def drawn(seed: int, channels: int, fan_in: int, groups: int = 1) -> tuple[Tensor, InputGram]:
    """A weight and the Gram matrix of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(groups, 4 * fan_in, fan_in, generator=generator)
    inputs = inputs @ torch.randn(groups, fan_in, fan_in, generator=generator)
    weight = torch.randn(channels, fan_in, generator=generator)
    return weight, InputGram(2 * (inputs.mT @ inputs).double())


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**16),
    fan_in=st.integers(2, 90),
    groups=st.sampled_from([1, 2, 4]),
    options=st.lists(st.sampled_from(MIX), min_size=1, max_size=5),
    order=st.booleans(),
)
def test_no_row_has_a_larger_error_on_the_damped_gram_than_when_rounded_to_nearest(
    seed: int, fan_in: int, groups: int, options: list[str], order: bool
) -> None:
    weight, gram = drawn(seed, 8, fan_in, groups)
    nearest = stored(weight, list(islice(cycle(options), 8)))
    chosen = gptq_layer(weight, gram, nearest, Gptq(order=order))
    damping = 0.01 * gram.gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(fan_in)
    before = row_errors(nearest, weight, gram.gram + damping)
    # Rounded in single precision, compared in double.
    assert bool((row_errors(chosen, weight, gram.gram + damping) <= before * (1 + 1e-6)).all())


@pytest.mark.parametrize("option", ["w1", "w1x2", "w2", "w3", "w2x2", "w2g7"])
def test_correlated_inputs_cost_at_most_three_quarters_of_the_nearest_error(option: str) -> None:
    weight, gram = drawn(3, 32, 48)
    nearest = stored(weight, [option] * 32)
    chosen = gptq_layer(weight, gram, nearest, Gptq())
    assert float(row_errors(chosen, weight, gram.gram).sum()) < 0.75 * float(
        row_errors(nearest, weight, gram.gram).sum()
    )


@pytest.mark.parametrize("option", ["w1x3", "w2", "w3", "w2x2", "w8", "w4x3", "w3t", "w3g5"])
def test_independent_inputs_leave_nothing_to_make_up_for(option: str) -> None:
    weight, _ = drawn(1, 6, 20)
    gram = InputGram(torch.diag(torch.linspace(0.5, 4.0, 20, dtype=torch.float64))[None])
    nearest = stored(weight, [option] * 6)
    chosen = gptq_layer(weight, gram, nearest, Gptq(refits=0))
    assert torch.equal(chosen.dequantize(), nearest.dequantize())


def greedy_reference(weight: Tensor, gram: Tensor, steps: Tensor, half: int, damping: float) -> Tensor:
    """Round column after column; then move all later columns to where the error is least, solved afresh."""
    fan_in = weight.shape[1]
    damped = gram + damping * gram.diagonal().mean() * torch.eye(fan_in, dtype=torch.float64)
    fitted = weight.double().clone()
    codes = torch.zeros_like(fitted)
    for j in range(fan_in):
        codes[:, j] = (fitted[:, j] / steps).round().clamp(-half, half - 1)
        fitted[:, j] = codes[:, j] * steps
        if j + 1 < fan_in:
            error = fitted[:, : j + 1] - weight[:, : j + 1]
            later = torch.linalg.solve(damped[j + 1 :, j + 1 :], damped[j + 1 :, : j + 1] @ error.T)
            fitted[:, j + 1 :] = weight[:, j + 1 :] - later.T
    return codes


@pytest.mark.parametrize("seed", range(5))
def test_codes_equal_those_of_columns_solved_afresh(seed: int) -> None:
    # Wider than one block of lazy updates.
    weight, gram = drawn(seed, 4, 70)
    nearest = stored(weight, ["w3"] * 4)
    expected = greedy_reference(weight, gram.gram[0], nearest.parts[0].rows.steps[0, :, 0].double(), 4, 0.01)
    chosen = gptq_layer(weight, gram, nearest, Gptq(order=False, refits=0)).parts[0].rows.codes[0]
    better = (chosen != nearest.parts[0].rows.codes[0]).any(1)
    assert bool(better.any())
    assert torch.equal(chosen[better].double(), expected[better])


def test_each_row_is_rounded_as_if_it_were_alone() -> None:
    weight, gram = drawn(5, 10, 30)
    options = list(islice(cycle(MIX), 10))
    together = gptq_layer(weight, gram, stored(weight, options), Gptq()).dequantize()
    for row, option in enumerate(options):
        alone = gptq_layer(weight[row : row + 1], gram, stored(weight[row : row + 1], [option]), Gptq())
        # The products of one row and of ten round differently in the last place of single precision.
        torch.testing.assert_close(together[row : row + 1], alone.dequantize(), rtol=1e-6, atol=0)


def test_narrow_rows_of_many_bits_are_refitted_as_if_they_were_alone() -> None:
    # Rounding anew may gain where the first refit does not: another row must not decide whether it is tried.
    found = []
    for seed in (3, 10, 11):
        weight, gram = drawn(seed, 40, 6)
        together = gptq_layer(weight, gram, stored(weight, ["w8"] * 40), Gptq()).dequantize()
        for row in range(40):
            alone = gptq_layer(weight[row : row + 1], gram, stored(weight[row : row + 1], ["w8"]), Gptq())
            found.append(torch.allclose(alone.dequantize(), together[row : row + 1], rtol=1e-4, atol=1e-6))
    assert all(found)


def test_steps_of_channels_far_apart_are_held_by_16_bits() -> None:
    for seed in range(30):
        weight, gram = drawn(seed, 30, 12)
        sizes = 2.0 ** (-29 * torch.rand(30, 1, generator=torch.Generator().manual_seed(seed)))
        sizes[0] = 1.0
        steps = (
            gptq_layer(weight * sizes, gram, stored(weight * sizes, ["w2"] * 30), Gptq()).parts[0].rows.steps
        )
        assert torch.equal(storable(steps), steps)


@pytest.mark.parametrize("refits", [0, 1, 3])
def test_codes_stay_within_each_rows_width_and_without_refits_steps_stay_as_they_are(refits: int) -> None:
    weight, gram = drawn(7, 10, 30)
    nearest = stored(weight, list(islice(cycle(MIX), 10)))
    chosen = gptq_layer(weight, gram, nearest, Gptq(refits=refits))
    for before, after in zip(nearest.parts, chosen.parts, strict=True):
        half = 2 ** (after.rows.option.bits - 1)
        assert int(after.rows.codes.min()) >= -half
        assert int(after.rows.codes.max()) < half
        if refits == 0:
            assert torch.equal(before.rows.steps, after.rows.steps)
        assert torch.equal(before.index, after.index)


@pytest.mark.parametrize("option", ["w1", "w1x2", "w2", "w3", "w2x2", "w3t", "w2g7"])
def test_steps_are_refitted_better_than_by_any_factor_and_rounded_at_again(option: str) -> None:
    weight, gram = drawn(3, 64, 48)
    nearest = stored(weight, [option] * 64)
    as_they_are, once, often = (gptq_layer(weight, gram, nearest, Gptq(refits=many)) for many in (0, 1, 4))
    damped = gram.gram + 0.01 * gram.gram.diagonal(dim1=1, dim2=2).mean() * torch.eye(48)

    def errors(layer: StoredLayer) -> Tensor:
        found = row_errors(layer, weight, damped)
        return found.sum()[None] if option.endswith("t") else found

    (part,), (refitted,) = as_they_are.parts, once.parts
    assert torch.equal(part.rows.codes, refitted.rows.codes)
    # By trying factors, the same for all rows where they share one step.
    tried = [
        errors(with_steps(as_they_are, [part.rows.steps * factor]))
        for factor in torch.linspace(0.7, 1.4, 701).tolist()
    ]
    least = torch.stack(tried).amin(0)
    assert bool((errors(once) <= least * (1 + 5e-3)).all())
    if option in {"w1", "w2", "w3", "w3t"}:
        # One step has no more than a factor.
        torch.testing.assert_close(errors(once), least, rtol=5e-3, atol=0)
    else:
        assert float(errors(once).sum()) < 0.99 * float(least.sum())
    assert bool((errors(once) <= errors(as_they_are) * (1 + 1e-6)).all())
    assert float(errors(once).sum()) < 0.999 * float(errors(as_they_are).sum())
    assert bool((errors(often) <= errors(once) * (1 + 1e-6)).all())
    if option != "w3t":
        assert float(errors(often).sum()) < 0.98 * float(errors(once).sum())


def test_runs_of_inputs_with_options_of_their_own_are_rounded_on_their_own_grids() -> None:
    weight, gram = drawn(2, 6, 24)
    nearest = stored(weight, ["w2", "w8", "w2x2"], inputs=8)
    chosen = gptq_layer(weight, gram, nearest, Gptq())
    before = row_errors(nearest, weight, gram.gram).sum()
    assert float(row_errors(chosen, weight, gram.gram).sum()) < float(before)
    assert [part.rows.codes.shape for part in chosen.parts] == [(1, 6, 8), (1, 6, 8), (2, 6, 8)]


def test_inputs_that_are_always_zero_leave_their_weights_nearest() -> None:
    weight, gram = drawn(4, 5, 12)
    gram.gram[:, 3] = gram.gram[:, :, 3] = 0.0
    nearest = stored(weight, ["w3"] * 5)
    chosen = gptq_layer(weight, gram, nearest, Gptq(refits=0))
    assert torch.equal(chosen.dequantize()[:, 3], nearest.dequantize()[:, 3])
    nothing = InputGram(torch.zeros(1, 12, 12, dtype=torch.float64))
    assert torch.equal(gptq_layer(weight, nothing, nearest, Gptq()).dequantize(), nearest.dequantize())


class Geometry(nn.Module):
    """Convolutions of every geometry, a linear layer on tokens, and one stored with its inputs first."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.grouped = nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2)
        self.same = nn.Conv2d(6, 5, (2, 3), padding="same", bias=False)
        self.linear = nn.Linear(5, 7)
        self.weight = nn.Parameter(torch.randn(7, 3))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.same(self.grouped(x).relu()).flatten(2).transpose(1, 2)
        out: Tensor = (self.linear(tokens) @ self.weight).mean(1)
        return out


@pytest.fixture(scope="module")
def geometry() -> tuple[Network, Data, Plan]:
    inputs = torch.randn(40, 4, 9, 8, generator=torch.Generator().manual_seed(0))
    network, data = capture(Geometry(), inputs[:2]), Data(inputs, None, "normal")
    profile = measure_profile(network, Data(inputs[:8], None, "normal"), parse_options("w3"))
    return network, data, solve_plan(*profile, "9b", "layer")


def test_the_gram_predicts_the_error_of_every_kind_of_layer(geometry: tuple[Network, Data, Plan]) -> None:
    network, data, _ = geometry
    deltas = {
        layer.weight: torch.randn(layer.shape, generator=torch.Generator().manual_seed(1))
        for layer in network.layers
    }
    seen: list[str] = []

    def check(call, entering, leaving):  # type: ignore[no-untyped-def]
        layer = call.layer
        delta = deltas[layer.weight]
        gram = InputGram.empty(layer.groups, layer.fan_in, torch.device("cpu"))
        gram.add(call, entering)
        if layer.kind == "conv":
            pads = [side for pair in reversed(call.padding) for side in pair]
            padded = nn.functional.pad(entering, pads)
            output = nn.functional.conv2d(padded, delta, None, call.stride, 0, call.dilation, call.groups)
        else:
            output = entering @ (delta if layer.transposed else delta.T)
        matrix = rows(layer, delta).double().view(layer.groups, -1, layer.fan_in)
        predicted = ((matrix @ gram.gram) * matrix).sum() / 2
        # Single-precision sums of a few thousand terms.
        torch.testing.assert_close(predicted, output.double().square().sum(), rtol=1e-5, atol=0)
        seen.append(layer.name)
        return leaving

    network.run(data.inputs, on_layer=check)
    assert seen == [layer.name for layer in network.layers]


@pytest.mark.parametrize("choice", [{}, {"sequential": False}, {"float_target": False}, {"order": False}])
def test_all_geometries_come_out_better_than_nearest(
    geometry: tuple[Network, Data, Plan], choice: dict[str, bool]
) -> None:
    network, data, plan = geometry
    reference = network.run(data.inputs)

    def error(finalized: Finalized) -> float:
        output = network.run(data.inputs, tensors=finalized.tensors(network))
        return float((output - reference).square().mean())

    told: list[tuple[int, int]] = []
    finalized = Gptq(**choice).finalize(network, plan, data, lambda *step: told.append(step))
    assert error(finalized) < 0.7 * error(finalize_nearest(network, plan))
    assert told == [(done, 4) for done in range(1, 5)]


@pytest.mark.parametrize("option", ["w1x2", "w2", "w2x2", "w3"])
def test_digits_lose_less_than_with_nearest(
    network: Network, plan: Plan, assign: Assign, data: Data, option: str
) -> None:
    chosen = assign({layer.name: [option] * layer.shape[0] for layer in plan.layers})
    nearest = measure_finalized(network, finalize_nearest(network, chosen), data).loss
    assert measure_finalized(network, Gptq().finalize(network, chosen, data), data).loss < 0.7 * nearest


def test_the_same_arguments_give_the_same_weights_whatever_the_memory(
    network: Network, plan: Plan, data: Data
) -> None:
    first = Gptq().finalize(network, plan, data).tensors(network)
    second = Gptq(memory_bytes=0).finalize(network, plan, data).tensors(network)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_few_positions_drawn_of_many_do_nearly_as_well(geometry: tuple[Network, Data, Plan]) -> None:
    network, data, plan = geometry
    many = Data(data.inputs.repeat(40, 1, 1, 1), None, data.name)
    reference = network.run(data.inputs)

    def error(method: Gptq) -> float:
        tensors = method.finalize(network, plan, many).tensors(network)
        return float((network.run(data.inputs, tensors=tensors) - reference).square().mean())

    few, all_ = Gptq(positions=1), Gptq(positions=10**6)
    assert error(few) < 1.5 * error(all_)
    assert not torch.equal(
        few.finalize(network, plan, many).layers[1].dequantize(),
        all_.finalize(network, plan, many).layers[1].dequantize(),
    )


def test_no_positions_are_refused() -> None:
    with pytest.raises(InputError, match=r"GPTQ has 0 positions per weight"):
        Gptq(positions=0)


@pytest.mark.parametrize("damping", [0.0, -1.0, float("nan"), 1e9])
def test_a_damping_that_is_none_is_refused(damping: float) -> None:
    with pytest.raises(InputError, match=r"GPTQ has damping .*; it is above 0 and below 1000, such as 0\.01"):
        Gptq(damping=damping)


class Overflowing(nn.Module):
    """The second layer's output is infinite, the network's is not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        with torch.no_grad():
            self.second.weight.abs_()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second((100 * self.first(x).abs()).exp()).sigmoid())


def test_inputs_that_are_infinite_are_refused_by_the_layers_name(plan_of: PlanOf) -> None:
    data = Data(torch.full((8, 4), 10.0), None, "large")
    network = capture(Overflowing(), data.inputs)
    with pytest.raises(InputError, match=r"enters layer 'second' on data 'large' is NaN or infinite"):
        Gptq().finalize(network, plan_of(network, ["w3"]), data)
