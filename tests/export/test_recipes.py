"""A recipe has the plan's bits, or says which layer it cannot have them for and what it has in its place."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from apportion.allocator import LayerPlan, Plan
from apportion.errors import InputError
from apportion.export import TOOLKITS, Recipe, export_recipe, make_recipe, save_network
from apportion.network import Data, Network, capture
from apportion.quantizer import parse_options
from apportion.reconstruct import finalize_nearest
from apportion.sensitivity import measure_profile, solve_plan

EVERY_WIDTH = [name for name in TOOLKITS if name != "nncf"]


def layer(shape: Sequence[int], *options: str, cut: str | None = None) -> LayerPlan:
    """A layer named `fc`, whose strips have these options."""
    return LayerPlan.from_strips(
        "fc", shape, options, cut=cut, size_bits=1, predicted_loss=0.0, mean_bits=1.0
    )


@pytest.fixture
def recipe(plan: Plan) -> Any:
    """A recipe for a network of one layer."""

    def make(planned: LayerPlan, toolkit: str, *, lower: bool = False) -> Recipe:
        return make_recipe(plan.model_copy(update={"layers": (planned,)}), toolkit, lower=lower)

    return make


def stored(recipe: Recipe) -> tuple[Any, Any] | None:
    """Bits of `fc` and its inputs per step, None for a whole channel; None where it stays float."""
    document = recipe.document
    if recipe.toolkit == "torchao":
        entry = document["_data"]["fqn_to_config"].get("fc")
        if entry is None:
            return None
        data = entry["_data"]
        bits = int(data["weight_dtype"]["_data"].removeprefix("int"))
        return bits, data["granularity"]["_data"].get("group_size")
    if recipe.toolkit == "compressed-tensors":
        if document["ignore"] == ["fc"]:
            return None
        (group,) = document["config_groups"].values()
        assert group["targets"] == ["fc"]
        return group["weights"]["num_bits"], group["weights"]["group_size"]
    if recipe.toolkit == "modelopt":
        if len(document["quant_cfg"]) == 1:
            return None
        cfg = document["quant_cfg"][1]["cfg"]
        return cfg["num_bits"], cfg.get("block_sizes", {}).get(-1)
    if recipe.toolkit == "nncf":
        if not document["compress_weights"]:
            return None
        (call,) = document["compress_weights"]
        group = call.get("group_size", -1)
        return int(call["mode"].removeprefix("int").removesuffix("_sym")), group if group > 0 else None
    entry = document["fc"]
    if entry["bits"] == 16:
        return None
    return entry["bits"], entry["group_size"] if entry["group_size"] > 0 else None


@pytest.mark.parametrize("toolkit", EVERY_WIDTH)
@pytest.mark.parametrize(
    ("option", "expected"), [(f"w{bits}", (bits, None)) for bits in range(2, 9)] + [("w4g32", (4, 32))]
)
def test_every_width_and_group_of_a_matrix_is_exact(
    recipe: Any, toolkit: str, option: str, expected: tuple[int, int | None]
) -> None:
    made = recipe(layer((64, 128), *[option] * 64), toolkit)
    assert stored(made) == expected
    assert made.lowered == {}


@pytest.mark.parametrize("toolkit", TOOLKITS)
def test_strips_of_inputs_with_one_option_are_groups(recipe: Any, toolkit: str) -> None:
    made = recipe(layer((64, 128), "w4", "w4", cut="inputs:64"), toolkit)
    assert stored(made) == (4, 64)
    assert made.lowered == {}


@pytest.mark.parametrize("toolkit", EVERY_WIDTH)
@pytest.mark.parametrize(
    ("planned", "expected", "why"),
    [
        (layer((32, 64), *["w3", "w5"] * 16), (5, None), "its channels have w3, w5"),
        (layer((32, 64), *["w2x2"] * 32), (4, None), "w2x2 is a sum of points"),
        (layer((32, 64), *["w4x3"] * 32), None, "12 bits in all"),
        (layer((32, 64), *["w3", "w4g32"] * 16), (4, 32), "its channels have w3, w4g32"),
        (layer((32, 64), "w3", "w6", cut="inputs:32"), (6, 32), "its inputs have w3, w6"),
        (layer((32, 64), *["w4g48"] * 32), None, "its last group has less than 48 weights"),
    ],
)
def test_what_a_toolkit_cannot_have_is_refused_or_lowered_to_what_is_not_less(
    recipe: Any, toolkit: str, planned: LayerPlan, expected: Any, why: str
) -> None:
    with pytest.raises(InputError, match=rf"layer 'fc' cannot be stored in {toolkit} as planned: {why}"):
        recipe(planned, toolkit)
    made = recipe(planned, toolkit, lower=True)
    assert stored(made) == expected
    assert why in made.lowered["fc"]


def test_convolutions_of_any_width_are_for_modelopt_alone(recipe: Any) -> None:
    planned = layer((8, 3, 3, 3), *["w5"] * 8)
    assert stored(recipe(planned, "modelopt")) == (5, None)
    for toolkit in ("torchao", "compressed-tensors", "autoround"):
        with pytest.raises(InputError, match="it is a convolution"):
            recipe(planned, toolkit)
        assert stored(recipe(planned, toolkit, lower=True)) is None


@pytest.mark.parametrize(
    ("planned", "expected", "why"),
    [
        (layer((32, 64), *["w4"] * 32), (4, None), ""),
        (layer((32, 64), *["w8"] * 32), (8, None), ""),
        (layer((32, 64), *["w4g32"] * 32), (4, 32), ""),
        (layer((32, 3, 3, 3), *["w8"] * 32), (8, None), ""),
        (layer((32, 64), *["w3"] * 32), (4, None), "it has 3 bits, and widths are 4, 8"),
        (layer((32, 64), *["w5"] * 32), (8, None), "it has 5 bits, and widths are 4, 8"),
        (layer((32, 3, 3, 3), *["w4"] * 32), (8, None), "it has 4 bits, and widths are 8"),
        (layer((32, 64), *["w8g32"] * 32), None, "8 bits with steps per group, and it has at most 4"),
    ],
)
def test_nncf_has_matrices_of_4_and_8_bits_and_convolutions_of_8(
    recipe: Any, planned: LayerPlan, expected: Any, why: str
) -> None:
    if why:
        with pytest.raises(InputError, match=rf"layer 'fc' cannot be stored in nncf as planned: {why}"):
            recipe(planned, "nncf")
    made = recipe(planned, "nncf", lower=True)
    assert stored(made) == expected
    assert made.lowered.get("fc", "").startswith(why)
    assert bool(made.lowered) is bool(why)


def test_nncf_leaves_out_all_nodes_but_those_of_the_layers_of_one_width(plan: Plan) -> None:
    names = {"blocks.0.fc": "w4", "blocks.0.fc2": "w8", "blocks.10.fc": "w4"}
    layers = tuple(
        LayerPlan(name=name, shape=(8, 8), option=option, size_bits=1, predicted_loss=0, mean_bits=1)
        for name, option in names.items()
    )
    calls = make_recipe(plan.model_copy(update={"layers": layers}), "nncf").document["compress_weights"]
    nodes = [f"{name.replace('.', '/')}/linear/0" for name in names]
    nodes += [f"{name}.weight" for name in names] + ["blocks/0/fc/act/relu/0", "blocks.0.fc.act.weight", "x"]
    taken = [
        [node for node in nodes if not re.match(call["ignored_scope"]["patterns"][0], node)] for call in calls
    ]
    assert taken == [[nodes[0], nodes[2], nodes[3], nodes[5]], [nodes[1], nodes[4]]]


def test_what_autoround_leaves_float_is_not_promised(recipe: Any) -> None:
    with pytest.raises(InputError, match="its sides are no multiples of 32"):
        recipe(layer((10, 64), *["w4"] * 10), "autoround")


def test_one_step_for_the_tensor_becomes_one_per_channel_in_torchao(recipe: Any) -> None:
    planned = layer((8, 64), *["w4t"] * 8)
    with pytest.raises(InputError, match="steps are per channel"):
        recipe(planned, "torchao")
    assert recipe(planned, "modelopt").document["quant_cfg"][1]["cfg"]["axis"] is None


def test_an_unknown_toolkit_is_refused_with_those_there_are(plan: Plan) -> None:
    with pytest.raises(InputError, match="'gptq' is not a toolkit with recipes; these are torchao"):
        make_recipe(plan, "gptq")


class Attention(nn.Module):
    """A weight of three layers without a module, one that has its inputs first, and one like any other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mix = nn.Module()
        self.mix.weight = nn.Parameter(torch.randn(8, 8))
        self.head = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attend(x, x, x)[0] @ self.mix.weight)


@pytest.mark.parametrize("toolkit", TOOLKITS)
def test_weights_that_are_not_those_of_a_linear_layer_are_refused_or_left_float(
    toolkit: str, tmp_path: Path
) -> None:
    inputs = torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(0))
    network = capture(Attention().eval(), inputs)
    profile, arrays = measure_profile(network, Data(inputs, None, "noise"), parse_options("w8"))
    plan = solve_plan(profile, arrays, "20b", "layer")
    save_network(tmp_path, network, plan, finalize_nearest(network, plan))
    with pytest.raises(InputError, match=r"layer 'attend.in_proj_weight' cannot .* it is no module of its"):
        export_recipe(tmp_path, tmp_path / "recipe", toolkit)
    lowered = export_recipe(tmp_path, tmp_path / "recipe", toolkit, lower=True).lowered
    assert "it is no module of its own" in lowered["attend.in_proj_weight"]
    assert lowered["mix"].startswith("its weight has its inputs first")
    assert lowered["mix"].endswith(": float")
    # Its sides are no multiples of 32, which autoround needs.
    assert ("head" in lowered) is (toolkit == "autoround")


def test_files_hold_the_document(network: Network, plan: Plan, tmp_path: Path) -> None:
    save_network(tmp_path / "run", network, plan, finalize_nearest(network, plan))
    for name, toolkit in TOOLKITS.items():
        path = tmp_path / f"{name}{toolkit.suffix}"
        made = export_recipe(tmp_path / "run", path, name, lower=True)
        if toolkit.suffix == ".json":
            assert json.loads(path.read_text()) == made.document
        else:
            names: dict[str, Any] = {}
            exec(compile(path.read_text(), path.name, "exec"), names)
            assert names["config"] == made.document
