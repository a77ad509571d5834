"""The plan document: written and read back, edited by hand, refused with the layer's name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from apportion.allocator import (
    Certificate,
    Complexity,
    Guard,
    LayerPlan,
    Measured,
    Plan,
    Status,
    assignment_digest,
    check_layers,
    read_plan,
    write_plan,
)
from apportion.errors import InputError

SCHEMA = Path(__file__).parents[2] / "docs" / "plan.schema.json"
SHAPES = {"conv1": (4, 3, 3, 3), "fc": (2, 8)}

Edit = Callable[[dict[str, Any]], None]


def example(**fields: Any) -> Plan:
    mixed = LayerPlan.from_strips(
        "conv1", (4, 3, 3, 3), ["w3", "w3", "w5", "w3"], size_bits=458, predicted_loss=0.25, mean_bits=4.25
    )
    uniform = LayerPlan.from_strips(
        "fc", (2, 8), ["w4", "w4"], size_bits=96, predicted_loss=0.125, mean_bits=6.0
    )
    certificate = Certificate(
        objective=0.375,
        bound=0.25,
        gap=0.125,
        relative_gap=1 / 3,
        status=Status.STATE_LIMIT,
        solver="convex hull and core search",
        shadow_prices={"size": 1e-4},
    )
    given: dict[str, Any] = {
        "unit": "channel",
        "budgets": ("5b",),
        "complexity": Complexity(
            size_bits=618, average_bits=4.47, fixed_bits=64, float_bits=4032, weight_count=124
        ),
        "certificate": certificate,
        "predicted_loss": 0.375,
        "measured": Measured(loss=0.4, standard_error=0.01, samples=1000, data="digits", accuracy=0.9),
        "guard": Guard(option="w4", uniform_loss=0.9, plan_loss=0.4, data="digits", kept="plan"),
        "profile": "0123456789abcdef",
        "options": ("w3", "w4", "w5"),
        "quantizer": {"search": "mse"},
        "assignment": assignment_digest([mixed, uniform]),
        "versions": {"apportion": "0.1.0"},
        "layers": (mixed, uniform),
    }
    return Plan(**(given | fields))


@pytest.mark.parametrize(
    "absent", [(), ("measured", "guard"), ("certificate",), ("certificate", "measured", "guard")]
)
def test_a_plan_written_and_read_is_the_same(tmp_path: Path, absent: tuple[str, ...]) -> None:
    plan = example(**dict.fromkeys(absent))
    write_plan(tmp_path / "plan.json", plan)
    assert read_plan(tmp_path / "plan.json") == plan


def test_a_written_plan_says_per_layer_what_a_person_would_edit(tmp_path: Path) -> None:
    write_plan(tmp_path / "plan.json", example())
    first, second = json.loads((tmp_path / "plan.json").read_text())["layers"]
    assert first["strips"] == {"w3": "0-1,3", "w5": "2"}
    assert "option" not in first
    assert second["option"] == "w4"
    assert "strips" not in second


def test_a_written_plan_meets_the_published_schema_and_the_schema_is_the_models(tmp_path: Path) -> None:
    write_plan(tmp_path / "plan.json", example())
    published = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.validate(json.loads((tmp_path / "plan.json").read_text()), published)
    assert published == Plan.json_schema(), "docs are behind the model; run python docs/write_schemas.py"


def test_channels_moved_by_hand_are_read(tmp_path: Path) -> None:
    edited = edit(tmp_path, lambda plan: plan["layers"][0].update(strips={"w5": "0", "w3": "1-3"}))
    assert edited.layers[0].strip_options() == ("w5", "w3", "w3", "w3")
    assert assignment_digest(edited.layers) != edited.assignment


def test_a_mix_replaced_by_one_option_is_read(tmp_path: Path) -> None:
    def to_option(plan: dict[str, Any]) -> None:
        del plan["layers"][0]["strips"]
        plan["layers"][0]["option"] = "w5"

    assert edit(tmp_path, to_option).layers[0].strip_options() == ("w5",) * 4


def edit(folder: Path, change: Edit) -> Plan:
    """Write the example, change its JSON, read it back."""
    path = folder / "plan.json"
    write_plan(path, example())
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return read_plan(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda plan: plan["layers"][0].update(option="w4"),
            "layer 'conv1' needs either an option or strips",
        ),
        (lambda plan: plan["layers"][1].pop("option"), "layer 'fc' needs either an option or strips"),
        (
            lambda plan: plan["layers"][0].update(strips={"w3": "0-1"}),
            "layer 'conv1': channel 2 has no option",
        ),
        (
            lambda plan: plan["layers"][0].update(strips={"w3": "0-3", "w5": "3"}),
            "layer 'conv1': channel 3 has two options, w3 and w5",
        ),
        (lambda plan: plan["layers"][0].update(bits=4), r"layers\.0\.bits: Extra inputs are not permitted"),
        (lambda plan: plan["layers"][1].update(name="conv1"), "layer 'conv1' occurs twice"),
        (lambda plan: plan["layers"][1].update(shape=[0, 8]), r"layers\.1\.shape\.0: .* greater than 0"),
        (
            lambda plan: plan.update(unit="layer"),
            "layer 'conv1' has several options .*; give it one option, or set unit to channel",
        ),
        (lambda plan: plan.update(version=1), r"version: .* 6"),
        (lambda plan: plan.update(layers=[]), "layers: .* at least 1 item"),
        (lambda plan: plan.pop("complexity"), "complexity: Field required"),
        (
            lambda plan: plan["certificate"].update(gap=-1.0),
            r"certificate\.gap: .* greater than or equal to 0",
        ),
    ],
)
def test_an_edit_that_cannot_be_meant_is_refused_where_it_is(
    tmp_path: Path, change: Edit, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        edit(tmp_path, change)


def test_five_hundred_alternating_channels_are_written_and_read(tmp_path: Path) -> None:
    options = ["w3", "w5"] * 400
    layer = LayerPlan.from_strips("wide", (800, 9), options, size_bits=1, predicted_loss=0.0, mean_bits=4.0)
    write_plan(tmp_path / "plan.json", example(layers=(layer,)))
    assert read_plan(tmp_path / "plan.json").layers[0].strip_options() == tuple(options)


def test_option_shares_add_up_to_one() -> None:
    assert example().layers[0].option_shares() == {"w3": 0.75, "w5": 0.25}
    assert example().layers[1].option_shares() == {"w4": 1.0}


def test_one_option_is_needed_for_each_channel() -> None:
    with pytest.raises(InputError, match="layer 'fc' has 2 output channels and 3 options are given"):
        LayerPlan.from_strips("fc", (2, 8), ["w4"] * 3, size_bits=1, predicted_loss=0.0, mean_bits=1.0)


def test_a_plan_fits_its_own_network() -> None:
    check_layers(example(), SHAPES)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (
            {"conv1": (4, 3, 3, 3)},
            "names layer 'fc', which the network does not have; its layers are 'conv1'",
        ),
        (SHAPES | {"conv2": (2, 2)}, "no entry for layer 'conv2'; every layer of the network needs one"),
        (
            SHAPES | {"fc": (2, 9)},
            r"gives layer 'fc' the shape \[2, 8\], but the network's weight has \[2, 9\]",
        ),
        (SHAPES | {f"l{index}": (1,) for index in range(12)}, "'l7' and 4 more; every layer"),
    ],
)
def test_a_plan_of_another_network_is_refused_with_the_layer(
    shapes: dict[str, tuple[int, ...]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        check_layers(example(), shapes)
