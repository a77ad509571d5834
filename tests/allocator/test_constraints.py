"""Constraints: a document, from a file or the command line, matched with layers, refused if it clashes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.allocator import Constraints, expand_auto, match_layers, match_rules, read_constraints
from apportion.errors import InputError
from apportion.quantizer import option_names

LAYERS = ("conv1", "layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1", "fc")
OPTIONS = ("w2", "w3", "w4", "w8")


def rules(**fields: Any) -> Any:
    return match_rules(Constraints(**fields), LAYERS, OPTIONS, option_names)


def left(found: Any, layer: str) -> list[str]:
    """Options that a layer may still take."""
    return [option for option, may in zip(OPTIONS, found.allowed[LAYERS.index(layer)], strict=True) if may]


def test_patterns_match_over_dots_and_a_name_means_itself() -> None:
    assert match_layers("layer1.*", LAYERS, "tie") == [1, 2]
    assert match_layers("*.conv1", LAYERS, "tie") == [1, 2, 3]
    assert match_layers("conv1", LAYERS, "tie") == [0]
    assert match_layers("a[0]", ("a0", "a[0]"), "tie") == [1]


def test_every_rule_leaves_what_it_says() -> None:
    found = rules(
        pin={"conv1": "w8"}, forbid={"layer*": ("w2", "w8")}, options={"fc": "w3..8"}, tie=("layer1.*",)
    )
    assert left(found, "conv1") == ["w8"]
    assert left(found, "layer2.0.conv1") == ["w3", "w4"]
    assert left(found, "fc") == ["w3", "w4", "w8"]
    assert found.groups == ((1, 2),)
    assert found.reasons[0, 0] == "pin conv1=w8"
    assert found.reasons[4, 0] == "options fc=w3..8"
    assert found.reasons[3, 3] == "forbid layer*=w2,w8"


def test_ties_that_share_a_layer_are_one_group_with_the_options_of_all() -> None:
    found = rules(
        tie=("layer1.*", ("layer1.1.conv1", "fc")), forbid={"fc": ("w2",), "layer1.0.conv1": ("w8",)}
    )
    assert found.groups == ((1, 2, 4),)
    assert left(found, "fc") == left(found, "layer1.1.conv1") == ["w3", "w4"]
    assert found.reasons[2, 0].startswith("tie layer1.0.conv1, layer1.1.conv1, fc")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"pin": {"con1": "w8"}}, r"pin con1=w8: 'con1' matches no layer; the nearest are conv1"),
        ({"tie": ("stage*",)}, r"tie stage\*: 'stage\*' matches no layer"),
        ({"tie": ("fc",)}, r"tie fc: only layer 'fc' matches; a tie needs two layers"),
        (
            {"pin": {"fc": "w5"}},
            r"pin fc=w5: w5 is not among the options w2, w3, w4, w8 .* add it to --options",
        ),
        ({"pin": {"fc": "w2..4"}}, r"pin fc=w2\.\.4: a pin names one option, and this names 3"),
        ({"pin": {"fc": "int8"}}, r"pin fc=int8: 'int8' is not an option"),
        ({"pin": {"fc": "w9"}}, r"pin fc=w9: option has 9 bits"),
        ({"forbid": {"fc": ("w2", "w9")}}, r"forbid fc=w2,w9: option has 9 bits"),
        ({"options": {"fc": "w9"}}, r"options fc=w9: option has 9 bits"),
        ({"tie": ("auto",)}, r"tie auto means layers .* name the layers to tie"),
        ({"options": {"fc": "w5..7"}}, r"options fc=w5\.\.7: w5, w6, w7 is not among"),
        (
            {"pin": {"fc": "w8"}, "forbid": {"f*": ("w8",)}},
            r"layer 'fc' has no option left of w2, w3, w4, w8 after pin fc=w8; forbid f\*=w8",
        ),
        ({"pin": {"fc": "w8", "f*": "w4"}}, r"layer 'fc' has no option left .* pin fc=w8; pin f\*=w4"),
        (
            {"pin": {"conv1": "w8", "fc": "w4"}, "tie": (("conv1", "fc"),)},
            r"tied layers have no option in common: 'conv1' may have w8; 'fc' may have w4; change the tie",
        ),
    ],
)
def test_rules_that_cannot_be_meant_are_named(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        rules(**fields)


def test_a_pin_to_an_option_that_the_layer_cannot_take_says_so() -> None:
    fits = np.ones((len(LAYERS), len(OPTIONS)), np.bool_)
    fits[0, 3] = False
    with pytest.raises(
        InputError, match=r"'conv1' has no option left .*\(some need more weights per channel"
    ):
        match_rules(Constraints(pin={"conv1": "w8"}), LAYERS, OPTIONS, option_names, fits=fits)


@settings(derandomize=True, deadline=None)
@given(
    forbidden=st.dictionaries(st.sampled_from(LAYERS), st.sampled_from(["w2", "w3", "w4"])),
    tied=st.lists(st.sampled_from(LAYERS), min_size=2, max_size=4, unique=True),
)
def test_tied_layers_may_take_what_all_of_them_may(forbidden: dict[str, str], tied: list[str]) -> None:
    forbid = {layer: (option,) for layer, option in forbidden.items()}
    alone, together = rules(forbid=forbid), rules(forbid=forbid, tie=(tuple(tied),))
    shared = np.logical_and.reduce([alone.allowed[LAYERS.index(layer)] for layer in tied])
    for row, layer in enumerate(LAYERS):
        assert (together.allowed[row] == (shared if layer in tied else alone.allowed[row])).all()
    forbidden_now = {(row, column) for row, column in np.argwhere(~together.allowed).tolist()}
    assert set(together.reasons) == forbidden_now


def test_auto_ties_the_layers_that_read_the_same_input() -> None:
    reads = [("x",), ("a",), ("a",), ("b",), ("a", "b")]
    found = expand_auto(Constraints(tie=("auto", "f*")), LAYERS, reads)
    assert found.tie == ("f*", ("layer1.0.conv1", "layer1.1.conv1"))
    plain = Constraints(tie=("f*",))
    assert expand_auto(plain, LAYERS, reads) is plain
    with pytest.raises(InputError, match="tie auto: no two layers read the same input"):
        expand_auto(Constraints(tie=("auto",)), LAYERS, [(name,) for name in LAYERS])
    with pytest.raises(InputError, match="tie auto: no two layers read the same input"):
        expand_auto(Constraints(tie=("auto",)), LAYERS, [()] * len(LAYERS))


FILE = """
tie = ["layer1.*", ["conv1", "fc"], "auto"]
exclude = ["head"]
budgets = ["4b", "latency=3.5"]

[pin]
conv1 = "w8"

[forbid]
"layer2.*" = ["w2", "w3"]

[options]
fc = "w4,w8"

[tables]
latency = "table.csv"
"""


def test_a_file_says_all_that_there_is_to_say(tmp_path: Path) -> None:
    path = tmp_path / "limits.toml"
    path.write_text(FILE)
    read = read_constraints(path)
    assert read.budgets == ("4b", "latency=3.5")
    assert read.tables == {"latency": str(tmp_path / "table.csv")}
    assert read.constraints() == Constraints(
        tie=("layer1.*", ("conv1", "fc"), "auto"),
        exclude=("head",),
        pin={"conv1": "w8"},
        forbid={"layer2.*": ("w2", "w3")},
        options={"fc": "w4,w8"},
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("tie = 'x", r"is not TOML"),
        ("ties = ['x']", r"ties: Extra inputs are not permitted"),
        ("pin = ['x']", r"pin: Input should be a valid dictionary"),
        ("[pin]\nconv1 = 8", r"pin.conv1: Input should be a valid string"),
        ("budgets = '4b'", r"budgets: Input should be a valid tuple"),
        ("exclude = ['']", r"exclude.0: .*at least 1 character"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_where_it_is(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "limits.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=reason):
        read_constraints(path)
    with pytest.raises(InputError, match=r"cannot read constraints .*No such file"):
        read_constraints(tmp_path / "nothing.toml")


def test_a_file_and_the_command_line_add_up_unless_they_contradict() -> None:
    first = Constraints(tie=("a*",), pin={"a": "w8"}, forbid={"b": ("w2",)}, options={"c": "w4..8"})
    second = Constraints(tie=("a*", "b*"), pin={"b": "w4"}, forbid={"b": ("w3", "w2")}, exclude=("d",))
    both = first.merged(second)
    assert both == Constraints(
        tie=("a*", "b*"),
        pin={"a": "w8", "b": "w4"},
        exclude=("d",),
        forbid={"b": ("w2", "w3")},
        options={"c": "w4..8"},
    )
    assert first.merged(Constraints()) == first == Constraints().merged(first)
    with pytest.raises(InputError, match="pin a is given twice, as w8 and as w4; keep one"):
        first.merged(Constraints(pin={"a": "w4"}))
