"""Finalizing: the codes are the quantizer's, in range, for exactly the channels that the plan names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice

import pytest
import torch
from torch import Tensor, nn

from apportion.allocator import LayerPlan, Plan
from apportion.errors import InputError
from apportion.network import Data, Network, capture, rows
from apportion.quantizer import Quantizer, parse_option, parse_options
from apportion.reconstruct import finalize_nearest, layer_shapes
from apportion.sensitivity import measure_profile, solve_plan

Assign = Callable[[Mapping[str, Sequence[str]]], Plan]
QUANTIZER = Quantizer()


def uniform(plan: Plan, assign: Assign, option: str) -> Plan:
    """The option for every layer that it fits."""
    group = parse_option(option).group
    return assign(
        {
            layer.name: [option] * layer.shape[0]
            for layer in plan.layers
            if torch.Size(layer.shape[1:]).numel() >= group
        }
    )


@pytest.mark.parametrize("option", ["w2", "w4", "w8", "w2x2", "w4t", "w3g16"])
def test_codes_and_steps_are_those_of_the_quantizer_and_in_range(
    network: Network, plan: Plan, assign: Assign, option: str
) -> None:
    chosen = uniform(plan, assign, option)
    finalized = finalize_nearest(network, chosen)
    half = 2 ** (parse_option(option).bits - 1)
    for layer, stored, planned in zip(network.layers, finalized.layers, chosen.layers, strict=True):
        assert stored.name == layer.name
        if planned.option != option:
            continue
        (part,) = stored.parts
        expected = QUANTIZER.quantize(rows(layer, network.weight(layer)), parse_option(option))
        assert part.index.tolist() == list(range(layer.channels))
        assert part.rows.option == parse_option(option)
        assert torch.equal(part.rows.codes, expected.codes)
        assert torch.equal(part.rows.steps, expected.steps)
        assert int(part.rows.codes.min()) >= -half
        assert int(part.rows.codes.max()) < half
        assert torch.equal(stored.dequantize(), expected.dequantize())


def test_mixed_channels_are_each_stored_under_their_own_option(
    network: Network, plan: Plan, assign: Assign
) -> None:
    mix = {
        layer.name: tuple(islice(cycle(["w3", "w2x2", "w8", "w2"]), layer.shape[0])) for layer in plan.layers
    }
    finalized = finalize_nearest(network, assign(mix))
    for layer, stored in zip(network.layers, finalized.layers, strict=True):
        weight = rows(layer, network.weight(layer))
        found = stored.dequantize()
        seen: list[int] = []
        for part in stored.parts:
            channels = part.index.tolist()
            assert channels == sorted(channels)
            assert {mix[layer.name][channel] for channel in channels} == {str(part.rows.option)}
            # Channels with steps of their own do not depend on which others they are stored with.
            alone = QUANTIZER.quantize(weight, part.rows.option).dequantize()
            assert torch.equal(found[part.index], alone[part.index])
            seen.extend(channels)
        assert sorted(seen) == list(range(layer.channels))


def test_tensors_replace_every_weight_in_its_own_shape_and_nothing_else(network: Network, plan: Plan) -> None:
    replaced = finalize_nearest(network, plan).tensors(network)
    assert set(replaced) == {layer.weight for layer in network.layers}
    for layer in network.layers:
        assert replaced[layer.weight].shape == network.weight(layer).shape
        assert replaced[layer.weight].dtype == network.weight(layer).dtype
    assert torch.isfinite(network.run(torch.zeros(2, 1, 8, 8), tensors=replaced)).all()


class Product(nn.Module):
    """A weight that is stored with its inputs first."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(12, 5))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def test_a_transposed_weight_is_quantized_per_output_channel() -> None:
    inputs = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    network = capture(Product(), inputs)
    (layer,) = network.layers
    assert layer.transposed
    assert layer_shapes(network) == {layer.name: (5, 12)}
    profile, arrays = measure_profile(network, Data(inputs, None, "normal"), parse_options("w3"))
    plan = solve_plan(profile, arrays, "8b", "layer")
    replaced = finalize_nearest(network, plan).tensors(network)[layer.weight]
    expected = QUANTIZER.quantize(network.weight(layer).T, parse_option("w3")).dequantize().T
    assert torch.equal(replaced, expected)


def test_progress_is_told_after_every_layer(network: Network, plan: Plan) -> None:
    told: list[tuple[int, int]] = []
    finalize_nearest(network, plan, on_layer=lambda done, total: told.append((done, total)))
    assert told == [(done, 9) for done in range(1, 10)]


def changed(plan: Plan, index: int, **update: object) -> Plan:
    layers = list(plan.layers)
    layers[index] = LayerPlan.model_validate(layers[index].model_dump() | update)
    return plan.model_copy(update={"layers": tuple(layers), "unit": "channel"})


def test_a_plan_that_misses_a_layer_is_refused_by_its_name(network: Network, plan: Plan) -> None:
    with pytest.raises(InputError, match=rf"no entry for layer '{plan.layers[3].name}'"):
        finalize_nearest(network, plan.model_copy(update={"layers": plan.layers[:3] + plan.layers[4:]}))


def test_a_plan_that_invents_a_layer_is_refused_by_its_name(network: Network, plan: Plan) -> None:
    with pytest.raises(InputError, match=r"names layer 'conv99', which the network does not have"):
        finalize_nearest(network, changed(plan, 2, name="conv99"))


def test_a_plan_for_another_shape_is_refused_by_the_layer(network: Network, plan: Plan) -> None:
    layer = plan.layers[-1]
    with pytest.raises(InputError, match=rf"gives layer '{layer.name}' the shape \[10, 49\]"):
        finalize_nearest(network, changed(plan, -1, shape=(10, 49)))


@pytest.mark.parametrize(
    ("update", "reason"),
    [
        ({"option": "w3g16"}, r"layer 'depthwise' has 9 weights per channel; option w3g16 needs at least 16"),
        ({"option": "w9"}, r"layer 'depthwise': option has 9 bits"),
        ({"option": "four"}, r"layer 'depthwise': 'four' is not an option"),
        (
            {"option": None, "strips": {"w4t": "0-7", "w4": "8-15"}},
            r"layer 'depthwise': option w4t has one step for the whole tensor",
        ),
    ],
)
def test_an_option_that_does_not_fit_is_refused_with_the_layer(
    network: Network, plan: Plan, update: dict[str, object], reason: str
) -> None:
    index = [layer.name for layer in plan.layers].index("depthwise")
    with pytest.raises(InputError, match=reason):
        finalize_nearest(network, changed(plan, index, **update))
