"""The size of a weight whose channels may have different options."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.errors import InputError
from apportion.quantizer import Option, channel_code_bits, stored_bits

options = st.builds(Option, st.integers(1, 8), st.integers(1, 3))


@pytest.mark.parametrize(("option_set", "bits"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (16, 4), (17, 5)])
def test_a_channel_code_has_the_least_bits_that_tell_the_options_apart(option_set: int, bits: int) -> None:
    assert channel_code_bits(option_set) == bits


@settings(derandomize=True, deadline=None)
@given(options, st.integers(1, 100), st.integers(1, 1000), st.integers(1, 30))
def test_channels_of_one_option_need_no_codes(
    option: Option, channels: int, fan_in: int, option_set: int
) -> None:
    assert stored_bits([option] * channels, fan_in, option_set) == option.size_bits(channels, fan_in)


@settings(derandomize=True, deadline=None)
@given(st.lists(options, min_size=2, max_size=30, unique=True), st.integers(1, 1000))
def test_channels_of_several_options_add_up_and_carry_a_code_each(
    channels: list[Option], fan_in: int
) -> None:
    expected = sum(option.points * (option.bits * fan_in + 16) + channel_code_bits(24) for option in channels)
    assert stored_bits(channels, fan_in, 24) == expected


@settings(derandomize=True, deadline=None)
@given(
    st.lists(options, min_size=2, max_size=9, unique=True), st.integers(2, 20), st.integers(1, 20), st.data()
)
def test_tiles_carry_a_code_each_and_the_last_may_be_shorter(
    tiles: list[Option], tile: int, fan_in: int, data: st.DataObject
) -> None:
    last = data.draw(st.integers(1, tile))
    channels = [option for option in tiles for _ in range(tile)][: len(tiles) * tile - tile + last]
    by_channel = stored_bits(channels, fan_in, 24)
    saved = (len(channels) - len(tiles)) * channel_code_bits(24)
    assert stored_bits(channels, fan_in, 24, tile=tile) == by_channel - saved


@settings(derandomize=True, deadline=None)
@given(st.lists(options, min_size=1, max_size=9), st.integers(1, 20), st.integers(1, 64))
def test_strips_of_several_rows_take_the_bits_of_all_their_rows(
    strips: list[Option], rows: int, row_weights: int
) -> None:
    found = stored_bits(strips, row_weights, 24, rows_per_strip=rows)
    codes = len(strips) * channel_code_bits(24) if len(set(strips)) > 1 else 0
    assert found == codes + sum(option.size_bits(rows, row_weights) for option in strips)


def test_a_tile_of_two_options_is_refused() -> None:
    w2, w4 = Option(2), Option(4)
    with pytest.raises(InputError, match="the tile of strips 2 to 3 has the options w2, w4; a tile has one"):
        stored_bits([w2, w2, w2, w4], 9, 2, tile=2)
    with pytest.raises(InputError, match="the tile of strips 4 to 5 has"):
        stored_bits([w2, w2, w2, w2, w2, w4], 9, 2, tile=4)
