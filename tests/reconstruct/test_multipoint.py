"""Multipoint plans: one threshold of output error for all channels, and a budget that is met exactly."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from apportion.allocator import LayerPlan, Plan, parse_budget
from apportion.errors import InfeasibleError, InputError
from apportion.network import Data, LayerCall, Network
from apportion.quantizer import PointFit, Quantizer, parse_option
from apportion.reconstruct import accept_edits, finalize_nearest, measure_finalized, multipoint_plan

BASE = parse_option("w2")


def points_of(plan: Plan) -> list[int]:
    return [parse_option(text).points for layer in plan.layers for text in layer.strip_options()]


def output_errors(network: Network, data: Data, points: int) -> list[Tensor]:
    """Mean squared output error of every channel of every layer, seen by running the layer."""
    errors: dict[str, Tensor] = {}
    quantizer = Quantizer(fit=PointFit.GREEDY)
    option = parse_option("w2" if points == 1 else f"w2x{points}")

    def watch(call: LayerCall, entering: Tensor, leaving: Tensor) -> Tensor:
        layer = call.layer
        weight = network.weight(layer)
        rows = weight.reshape(layer.channels, -1)
        delta = (quantizer.quantize(rows, option).dequantize() - rows).view_as(weight)
        if layer.kind == "linear":
            output = entering @ delta.T
        else:
            pads = [side for pair in reversed(call.padding) for side in pair]
            padded = torch.nn.functional.pad(entering, pads)
            output = torch.nn.functional.conv2d(
                padded, delta, None, call.stride, 0, call.dilation, call.groups
            ).movedim(1, -1)
        errors[layer.name] = output.double().square().flatten(0, -2).mean(0)
        return leaving

    with torch.inference_mode():
        network.run(data.inputs, on_layer=watch)
    return [errors[layer.name] for layer in network.layers]


def test_every_channel_has_the_fewest_points_below_one_threshold(network: Network, data: Data) -> None:
    most = 3
    plan = multipoint_plan(network, data, BASE, most, "3.5b")
    chosen = torch.tensor(points_of(plan))
    assert set(chosen.tolist()) == {1, 2, 3}
    errors = torch.stack([torch.cat(output_errors(network, data, n)) for n in (1, 2, 3)])
    own = errors.gather(0, (chosen - 1)[None])[0]
    threshold = float(own[chosen < most].max())
    fewer = errors.gather(0, (chosen - 2).clamp_min(0)[None])[0][chosen > 1]
    # Errors of single-precision outputs, against sums of products of inputs.
    assert bool((fewer > threshold * (1 - 1e-4)).all())


@pytest.mark.parametrize("budget", ["2.6b", "3.3b", "4b", "40KiB", "20%"])
def test_the_budget_is_kept_and_less_is_left_than_one_more_channel_takes(
    network: Network, data: Data, budget: str
) -> None:
    plan = multipoint_plan(network, data, BASE, 4, budget)
    complexity = plan.complexity
    limit = parse_budget(budget).bits(complexity.weight_count, complexity.fixed_bits, complexity.float_bits)
    left = limit - sum(layer.size_bits for layer in plan.layers)
    assert complexity.size_bits == complexity.fixed_bits + limit - left
    # Another point of one channel, and the codes of a layer that was uniform before.
    largest = max(2 * layer.fan_in + 16 + 2 * layer.channels for layer in network.layers)
    assert 0 <= left < largest
    assert accept_edits(plan) is plan


def test_more_bits_never_take_a_point_from_a_channel(network: Network, data: Data) -> None:
    plans = [multipoint_plan(network, data, BASE, 4, budget) for budget in ("2.6b", "4b", "9b")]
    for fewer, more in pairwise(plans):
        assert all(one <= other for one, other in zip(points_of(fewer), points_of(more), strict=True))
    assert set(points_of(plans[-1])) == {4}
    assert [layer.option for layer in plans[-1].layers] == ["w2x4"] * len(network.layers)


def test_the_plan_is_carried_out_and_loses_less_than_points_for_other_channels(
    network: Network, data: Data
) -> None:
    plan = multipoint_plan(network, data, BASE, 2, "3b")
    swapped = plan.model_copy(
        update={
            "layers": tuple(
                LayerPlan.from_strips(
                    layer.name,
                    layer.shape,
                    ["w2" if text == "w2x2" else "w2x2" for text in layer.strip_options()],
                    size_bits=layer.size_bits,
                    predicted_loss=0.0,
                    mean_bits=layer.mean_bits,
                )
                for layer in plan.layers
            )
        }
    )
    chosen, other = (
        measure_finalized(network, finalize_nearest(network, each), data).loss for each in (plan, swapped)
    )
    assert chosen < other


def test_groups_have_points_too_and_the_same_arguments_give_the_same_plan(
    network: Network, data: Data
) -> None:
    base = parse_option("w3g4")
    first, second = (multipoint_plan(network, data, base, 2, "12b") for _ in range(2))
    assert first == second
    assert first.options == ("w3g4", "w3x2g4")
    assert first.certificate is None


def test_layers_with_an_option_of_their_own_keep_it_and_the_others_share_what_is_left(
    network: Network, data: Data
) -> None:
    first, last = network.layers[0].name, network.layers[-1].name
    fixed = {first: parse_option("w8"), last: parse_option("w6")}
    plan = multipoint_plan(network, data, BASE, 2, "3b", fixed=fixed)
    assert (plan.layers[0].option, plan.layers[-1].option) == ("w8", "w6")
    assert plan.options == ("w2", "w2x2", "w8", "w6")
    assert {text for layer in plan.layers[1:-1] for text in layer.strip_options()} == {"w2", "w2x2"}
    assert plan.complexity.average_bits <= 3
    assert accept_edits(plan) is plan
    # A group that does not fit a layer is no matter where the layer does not have it.
    small = {layer.name: parse_option("w8") for layer in network.layers if layer.fan_in < 64}
    assert multipoint_plan(network, data, parse_option("w2g64"), 2, "5b", fixed=small).options[-1] == "w8"


def test_a_budget_below_the_base_names_the_least_and_the_most(network: Network, data: Data) -> None:
    with pytest.raises(InfeasibleError, match=r"2b allows .* bits .*; w2 for all .* and w2x3 .* Raise the"):
        multipoint_plan(network, data, BASE, 3, "2b")


@pytest.mark.parametrize("option", ["w2x2", "w4t"])
def test_a_base_of_several_points_or_one_step_is_refused(network: Network, data: Data, option: str) -> None:
    with pytest.raises(InputError, match=rf"has the base {option}; it is one point with steps of its own"):
        multipoint_plan(network, data, parse_option(option), 2, "4b")


def test_numbers_of_points_and_groups_that_do_not_fit_are_refused(network: Network, data: Data) -> None:
    with pytest.raises(InputError, match=r"has at most 1 points; it takes 2 to 8"):
        multipoint_plan(network, data, BASE, 1, "4b")
    with pytest.raises(InputError, match=r"layer 'stem': option w2g16 has groups of 16 weights"):
        multipoint_plan(network, data, parse_option("w2g16"), 2, "9b")
