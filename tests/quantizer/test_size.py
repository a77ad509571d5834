"""The size of a weight whose channels may have different options."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.quantizer import Option, channel_code_bits, stored_bits

options = st.builds(Option, st.integers(2, 8), st.integers(1, 3))


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
