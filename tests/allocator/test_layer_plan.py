"""The plan of one layer: its strips are those of its cut, and of the plan's unit of choice."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from apportion.allocator import LayerPlan, parse_unit
from apportion.errors import InputError


def linear(options: list[str], cut: str | None = None) -> LayerPlan:
    """A linear layer of 4 outputs and 12 inputs."""
    return LayerPlan.from_strips(
        "fc", (4, 12), options, cut=cut, size_bits=1, predicted_loss=0.0, mean_bits=1.0
    )


def test_strips_of_inputs_are_counted_from_the_shape() -> None:
    layer = linear(["w2", "w4", "w4"], "inputs:4")
    assert layer.strips == {"w2": "0", "w4": "1-2"}
    assert layer.strip_options() == ("w2", "w4", "w4")
    assert layer.option_shares() == {"w2": pytest.approx(1 / 3), "w4": pytest.approx(2 / 3)}
    assert linear(["w4"] * 3, "inputs:4").strip_options() == ("w4",) * 3
    assert linear(["w4"] * 3, "inputs:4").strips is None


@pytest.mark.parametrize(("cut", "what"), [(None, "4 output channels"), ("inputs:6", "2 strips")])
def test_one_option_is_needed_for_each_strip(cut: str | None, what: str) -> None:
    with pytest.raises(InputError, match=f"layer 'fc' has {what} and 3 options are given; give one for each"):
        linear(["w2", "w3", "w4"], cut)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"strips": {"w2": "0-2", "w4": "3"}},
            "layer 'fc': option w4 names strip 3, but the strips are 0 to 2",
        ),
        ({"strips": {"w2": "0-1"}}, "layer 'fc': strip 2 has no option; name every strip once"),
        ({"option": "w2", "cut": "inputs:5"}, r"layer 'fc': the cut inputs:5 does not fit shape \[4, 12\]"),
        ({"option": "w2", "cut": "rows"}, "layer 'fc': 'rows' is not a unit of choice"),
    ],
)
def test_strips_that_the_layer_does_not_have_are_refused(fields: dict[str, object], message: str) -> None:
    given = {"name": "fc", "shape": (4, 12), "cut": "inputs:4", "size_bits": 1, "predicted_loss": 0.0}
    with pytest.raises(ValidationError, match=message):
        LayerPlan.model_validate(given | {"mean_bits": 1.0} | fields)


@pytest.mark.parametrize(
    ("options", "cut", "unit"),
    [
        (["w2"] * 4, None, "layer"),
        (["w2", "w4", "w4", "w4"], None, "channel"),
        (["w2", "w2", "w2", "w4"], None, "tile:3"),
        (["w2", "w2", "w2", "w2"], None, "inputs:64"),
        (["w2", "w2", "w4"], "inputs:4", "inputs:4"),
        (["w2"] * 3, "inputs:4", "layer"),
    ],
)
def test_strips_that_the_unit_allows_pass(options: list[str], cut: str | None, unit: str) -> None:
    linear(options, cut).check_unit(parse_unit(unit))


@pytest.mark.parametrize(
    ("options", "cut", "unit", "message"),
    [
        (
            ["w2", "w4", "w4", "w4"],
            None,
            "layer",
            "several options in a plan per layer, .* set unit to channel",
        ),
        (
            ["w2", "w4", "w4", "w4"],
            None,
            "inputs:4",
            "several options in a plan per inputs:4, where it is one",
        ),
        (["w2", "w2", "w4"], "inputs:4", "layer", "several options in a plan per layer, .* unit to inputs:4"),
        (
            ["w2", "w2", "w4"],
            "inputs:4",
            "tile:2",
            "has cut inputs:4 in a plan per tile:2; set unit to inputs:4",
        ),
        (["w2"] * 3, "inputs:4", "channel", "has cut inputs:4 in a plan per channel"),
        (["w2"] * 3, "inputs:4", "inputs:6", "has cut inputs:4 in a plan per inputs:6"),
        (
            ["w2", "w4", "w4", "w4"],
            None,
            "tile:3",
            "'fc': channels 0-2 are one tile and have .* w2, w4; give",
        ),
        (["w2", "w2", "w2", "w4"], None, "tile:2", "'fc': channels 2-3 are one tile"),
    ],
)
def test_strips_that_the_unit_cannot_have_are_refused_with_the_layer(
    options: list[str], cut: str | None, unit: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        linear(options, cut).check_unit(parse_unit(unit))
