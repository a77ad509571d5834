"""Units of choice as text: read back as written, and refused with the grammar."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.allocator import Unit, parse_unit
from apportion.errors import InputError


@settings(derandomize=True, deadline=None)
@given(kind=st.sampled_from(["tile", "inputs"]), size=st.integers(2, 9_999_999))
def test_a_unit_with_a_size_reads_back_as_written(kind: str, size: int) -> None:
    unit = parse_unit(f"{kind}:{size}")
    assert (unit.kind, unit.size, str(unit)) == (kind, size, f"{kind}:{size}")


@pytest.mark.parametrize("kind", ["layer", "channel"])
def test_layers_and_channels_have_no_size(kind: str) -> None:
    assert parse_unit(f" {kind} ") == Unit(kind)  # type: ignore[arg-type]
    assert str(parse_unit(kind)) == kind


def test_only_tiles_share_codes_and_only_strips_of_inputs_cut_a_layer() -> None:
    units = [parse_unit(text) for text in ("layer", "channel", "tile:16", "inputs:64")]
    assert [unit.tile for unit in units] == [1, 1, 16, 1]
    assert [unit.cut for unit in units] == [None, None, None, "inputs:64"]


@pytest.mark.parametrize(
    "text",
    ["", "tile", "inputs", "layer:4", "channel:2", "tile:", "tile:-2", "tile:2.5", "row:3", "tile:99999999"],
)
def test_another_text_is_refused_with_the_grammar(text: str) -> None:
    with pytest.raises(InputError, match=rf"'{text}' is not a unit of choice; write layer, channel, tile:16"):
        parse_unit(text)


@pytest.mark.parametrize("text", ["tile:1", "inputs:0"])
def test_a_size_of_one_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=rf"the unit '{text}' has size \d; a size is at least 2"):
        parse_unit(text)
