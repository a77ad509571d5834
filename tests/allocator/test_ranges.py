"""Channels by option, as text: the shortest form, and exactly one option for every channel."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.allocator.ranges import strip_options, strip_ranges


@settings(derandomize=True, deadline=None)
@given(options=st.lists(st.sampled_from(["w2", "w2x2", "w3", "w10"]), min_size=1, max_size=60))
def test_ranges_and_options_are_inverses(options: list[str]) -> None:
    assert strip_options(strip_ranges(options), len(options)) == tuple(options)


def test_ranges_are_short_and_in_natural_order() -> None:
    options = ["w10", "w10", "w2", "w10", "w3", "w3", "w3"]
    assert strip_ranges(options) == {"w2": "2", "w3": "4-6", "w10": "0-1,3"}


def test_spaces_and_single_channels_written_as_ranges_are_read() -> None:
    assert strip_options({"w4": " 0 - 1 , 3-3", "w2": "2"}, 4) == ("w4", "w4", "w2", "w4")


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"w4": "0-2"}, "channel 3 has no option; name every channel once"),
        ({}, "channel 0 has no option"),
        ({"w4": "0-3", "w2": "2"}, "channel 2 has two options, w4 and w2"),
        ({"w4": "0-1,1-3"}, "channel 1 has two options, w4 and w4"),
        ({"w4": "0-4"}, "option w4 names channel 4, but the channels are 0 to 3"),
        ({"w4": "0-999999999999"}, "names channel 999999999999"),
        ({"w4": "3-0"}, "range 3-0 of option w4 runs backwards"),
        ({"w4": "0-3,"}, "'0-3,' are not channels of option w4; write ranges such as 0-4,9"),
        ({"w4": "all"}, "'all' are not channels of option w4"),
        ({"w4": "-1"}, "'-1' are not channels"),
        ({"w4": "0-" + "9" * 5000}, "are not channels of option w4"),
    ],
)
def test_ranges_that_do_not_cover_every_channel_once_are_refused(
    ranges: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        strip_options(ranges, 4)


def test_messages_call_strips_of_inputs_strips() -> None:
    with pytest.raises(ValueError, match="option w4 names strip 4, but the strips are 0 to 3"):
        strip_options({"w4": "0-4"}, 4, "strip")
