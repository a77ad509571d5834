"""Packed files of tiles and of strips of inputs: what was finalized, exactly as large as planned."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from apportion.allocator import LayerPlan, Plan, parse_unit
from apportion.errors import InputError
from apportion.export import load, read_packed, save_network, write_packed
from apportion.network import Data, Network, rows
from apportion.quantizer import Quantizer, channel_code_bits, packed_bytes, parse_option, parse_options
from apportion.reconstruct import accept_edits, finalize_nearest
from apportion.sensitivity import FisherSettings, Profile, ProfileArrays, measure_profile, solve_plan

from .conftest import with_checksum

OPTIONS = "w2..5,w2x2"
CUT = "inputs:16"
UNITS = ["tile:2", "tile:8", "tile:7", CUT]


@pytest.fixture(scope="module")
def scored(network: Network, data: Data) -> Callable[[str], tuple[Profile, ProfileArrays]]:
    """Scores that exist for a unit of choice."""
    few = Data(data.inputs[:16], None, data.name)
    by_cut: dict[str | None, tuple[Profile, ProfileArrays]] = {}

    def profile(unit: str) -> tuple[Profile, ProfileArrays]:
        cut = parse_unit(unit).cut
        if cut not in by_cut:
            settings = FisherSettings(cut=cut)
            measured, arrays = measure_profile(network, few, parse_options(OPTIONS), settings=settings)
            assert arrays is not None
            by_cut[cut] = measured, arrays
        return by_cut[cut]

    return profile


@pytest.fixture(scope="module")
def planned(scored: Callable[[str], tuple[Profile, ProfileArrays]]) -> Callable[[str], Plan]:
    """The plan of 3.9 stored bits per weight per unit of choice, with layers of several options."""

    def plan(unit: str) -> Plan:
        solved = solve_plan(*scored(unit), ["3.9b"], unit)
        return several_strips(solved) if unit == CUT else solved

    return plan


def several_strips(plan: Plan) -> Plan:
    """The plan with several options in the last layer, the only one that can be cut."""
    head = plan.layers[-1]
    changed = LayerPlan.from_strips(
        head.name,
        head.shape,
        ["w2", "w2x2", "w2"],
        cut=head.cut,
        size_bits=head.size_bits,
        predicted_loss=head.predicted_loss,
        mean_bits=head.mean_bits,
    )
    return accept_edits(plan.model_copy(update={"layers": (*plan.layers[:-1], changed), "budgets": ("9b",)}))


def contents(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping


@pytest.mark.parametrize("unit", UNITS)
def test_the_file_holds_the_planned_bits_and_fills_each_tensor_to_a_whole_byte(
    network: Network, planned: Callable[[str], Plan], tmp_path: Path, unit: str
) -> None:
    plan = planned(unit)
    assert plan.unit == unit
    assert any(layer.strips is not None for layer in plan.layers)
    write_packed(tmp_path / "weights.safetensors", network, plan, finalize_nearest(network, plan))
    stored = contents(tmp_path / "weights.safetensors")
    code_bits = channel_code_bits(len(plan.options))
    for layer in plan.layers:
        cut, chosen = layer.layer_cut(), layer.strip_options()
        counted = 0
        for text in set(chosen):
            option = parse_option(text)
            weights = chosen.count(text) * cut.rows_per_strip * cut.row_weights
            for point in range(option.points):
                codes, steps = (stored[f"{layer.name}/{text}/{point}/{part}"] for part in ("codes", "steps"))
                assert codes.numel() == packed_bytes(weights, option.bits)
                assert steps.shape == (chosen.count(text) * cut.rows_per_strip, 1)
                counted += option.bits * weights + 16 * steps.numel()
        if layer.strips is not None:
            tiles = -(-cut.strips // parse_unit(unit).tile)
            assert stored[f"{layer.name}/strips"].numel() == packed_bytes(tiles, code_bits)
            counted += tiles * code_bits
        # Bit for bit: the plan counts what the file holds before it is padded to bytes.
        assert counted == layer.size_bits
    floats = [tensor for name, tensor in stored.items() if name.startswith("=")]
    assert sum(8 * tensor.numel() * tensor.element_size() for tensor in floats) == plan.complexity.fixed_bits


@pytest.mark.parametrize("unit", UNITS)
def test_codes_and_steps_come_back_bit_for_bit(
    network: Network, data: Data, planned: Callable[[str], Plan], tmp_path: Path, unit: str
) -> None:
    plan = planned(unit)
    finalized = finalize_nearest(network, plan)
    save_network(tmp_path, network, plan, finalized)
    found = read_packed(tmp_path / "weights.safetensors")
    assert found.plan == plan
    for layer, other in zip(found.finalized.layers, finalized.layers, strict=True):
        assert layer.cut == other.cut
        for part, wanted in zip(layer.parts, other.parts, strict=True):
            assert part.rows.option == wanted.rows.option
            assert torch.equal(part.index, wanted.index)
            assert torch.equal(part.rows.codes, wanted.rows.codes)
            assert torch.equal(part.rows.steps, wanted.rows.steps)
    expected = network.run(data.inputs[:4], tensors=finalized.tensors(network))
    assert torch.equal(load(tmp_path).run(data.inputs[:4]), expected)


def test_a_weight_is_its_strips_each_quantized_alone(
    network: Network, planned: Callable[[str], Plan]
) -> None:
    plan = planned(CUT)
    finalized = {layer.name: layer for layer in finalize_nearest(network, plan).layers}
    cut = [layer for layer in plan.layers if layer.cut is not None]
    assert [layer.cut for layer in cut] == [CUT] * len(cut)
    assert any(layer.strips is not None for layer in cut)
    quantizer = Quantizer.from_settings(plan.quantizer)
    for planned_layer in cut:
        layer = next(layer for layer in network.layers if layer.name == planned_layer.name)
        weight = rows(layer, network.weight(layer))
        strips = [
            quantizer.quantize(part, parse_option(option)).dequantize()
            for part, option in zip(weight.split(16, 1), planned_layer.strip_options(), strict=True)
        ]
        assert torch.equal(finalized[layer.name].dequantize(), torch.cat(strips, 1))


def test_convolutions_have_one_option_where_inputs_are_the_unit(planned: Callable[[str], Plan]) -> None:
    for layer in planned(CUT).layers:
        if len(layer.shape) > 2:
            assert layer.cut is None
            assert layer.option is not None


def test_a_tile_has_one_option(planned: Callable[[str], Plan]) -> None:
    for layer in planned("tile:7").layers:
        chosen = layer.strip_options()
        assert all(len(set(chosen[start : start + 7])) == 1 for start in range(0, len(chosen), 7))


def in_plan(path: Path, edit: Callable[[Any], object]) -> None:
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["apportion"])
    edit(header["plan"])
    save_file(contents(path), path, metadata=with_checksum(json.dumps(header)))


@pytest.mark.parametrize(
    ("update", "reason"),
    [
        ({"strips": {"w2": "0-1", "w3": "2-3"}}, r"option w3 names strip 3, but the strips are 0 to 2"),
        ({"strips": {"w2": "0-1"}}, r"strip 2 has no option; name every strip once"),
        ({"cut": "inputs:5"}, r"the cut inputs:5 does not fit shape \[10, 48\]"),
        ({"cut": "tile:16"}, r"'tile:16' is not a cut"),
        ({"cut": "inputs:24"}, r"has cut inputs:24 in a plan per inputs:16; set unit to inputs:24"),
    ],
)
def test_strips_that_a_layer_does_not_have_are_refused_with_its_name(
    network: Network, planned: Callable[[str], Plan], tmp_path: Path, update: dict[str, Any], reason: str
) -> None:
    plan, path = planned(CUT), tmp_path / "weights.safetensors"
    write_packed(path, network, plan, finalize_nearest(network, plan))
    last = plan.layers[-1]
    options = {"option": None} if "strips" in update else {"strips": None, "option": "w2"}
    in_plan(path, lambda document: document["layers"][-1].update(options | update))
    with pytest.raises(InputError, match=rf"layer '{last.name}'.*{reason}"):
        read_packed(path)


def test_a_forged_unit_does_not_fit_the_codes_stored(
    network: Network, planned: Callable[[str], Plan], tmp_path: Path
) -> None:
    plan, path = planned("tile:8"), tmp_path / "weights.safetensors"
    write_packed(path, network, plan, finalize_nearest(network, plan))
    in_plan(path, lambda document: document.update(unit="layer"))
    with pytest.raises(InputError, match=r"has several options in a plan per layer"):
        read_packed(path)
    in_plan(path, lambda document: document.update(unit="rows"))
    with pytest.raises(InputError, match="'rows' is not a unit of choice"):
        read_packed(path)
