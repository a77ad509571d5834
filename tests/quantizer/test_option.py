"""The text form of options, their ranges and their size."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.errors import InputError
from apportion.quantizer import Option, StepUnit, parse_option, parse_options

units = st.one_of(
    st.just((StepUnit.CHANNEL, 0)),
    st.just((StepUnit.TENSOR, 0)),
    st.tuples(st.just(StepUnit.GROUP), st.integers(1, 999_999)),
)
options = st.builds(
    lambda bits, points, unit: Option(bits, points, *unit), st.integers(1, 8), st.integers(1, 8), units
)


@settings(derandomize=True, deadline=None)
@given(options)
def test_an_option_is_read_back_from_its_text(option: Option) -> None:
    assert parse_option(str(option)) == option


@settings(derandomize=True, deadline=None)
@given(st.lists(options, min_size=1, max_size=5))
def test_a_list_of_options_is_read_back_without_order_and_repetition(chosen: list[Option]) -> None:
    read = parse_options(", ".join(map(str, chosen + chosen)))
    assert len(read) == len(set(chosen))
    assert set(read) == set(chosen)


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("w4", Option(4)),
        (" w4 ", Option(4)),
        ("w2x2", Option(2, 2)),
        ("w4x1", Option(4)),
        ("w8t", Option(8, unit=StepUnit.TENSOR)),
        ("w4g64", Option(4, unit=StepUnit.GROUP, group=64)),
        ("w2x3g32", Option(2, 3, StepUnit.GROUP, 32)),
    ],
)
def test_the_text_forms_of_the_documentation_mean_what_they_say(text: str, option: Option) -> None:
    assert parse_option(text) == option


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("w2..4", "w2 w3 w4"),
        ("w2..w4", "w2 w3 w4"),
        ("w4x1..2", "w4 w4x2"),
        ("w2..3x1..2", "w2 w3 w2x2 w3x2"),
        ("w8,w2", "w2 w8"),
        ("w4,,w4", "w4"),
        ("w2..3g64", "w2g64 w3g64"),
        ("w2x2..3t", "w2x2t w2x3t"),
        ("w5..5", "w5"),
    ],
)
def test_ranges_give_every_option_once_in_the_order_of_stored_bits(text: str, expected: str) -> None:
    assert " ".join(map(str, parse_options(text))) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("w0", "option has 0 bits; codes have 1 to 8 bits"),
        ("w9", "option has 9 bits; codes have 1 to 8 bits"),
        ("w4x0", "option has 0 points; a weight is a sum of 1 to 8 points"),
        ("w4x9", "option has 9 points; a weight is a sum of 1 to 8 points"),
        ("w4g0", "option has groups of 0 weights; a group has 1 to 999,999 weights"),
        ("fp4", "'fp4' is not an option; write w4"),
        ("w4g64t", "'w4g64t' is not an option; write w4"),
        ("w-4", "'w-4' is not an option; write w4"),
    ],
)
def test_an_option_that_cannot_be_is_refused_with_what_is_allowed(text: str, message: str) -> None:
    for parse in (parse_option, parse_options):
        with pytest.raises(InputError, match=message):
            parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("w8..2", "the range 'w8..2' is empty; write the smaller number first"),
        ("w4x3..1", "the range 'w4x3..1' is empty"),
        ("w2..9", "option has 9 bits"),
        ("w2...4", r"'w2\.\.\.4' is not an option"),
        ("", "'' names no option; write for example w2..8"),
        (" , ", "names no option"),
    ],
)
def test_a_range_that_cannot_be_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_options(text)


def test_a_single_option_is_not_read_from_nothing() -> None:
    with pytest.raises(InputError, match="'' is not an option"):
        parse_option("")


@pytest.mark.parametrize(
    ("unit", "group", "message"),
    [
        (StepUnit.CHANNEL, 64, "option has unit channel and group 64; a group size goes with unit group"),
        (StepUnit.CHANNEL, -1, "option has unit channel and group -1"),
        (StepUnit.TENSOR, 8, "option has unit tensor and group 8"),
        (StepUnit.GROUP, 0, "option has groups of 0 weights"),
        (StepUnit.GROUP, 10**6, "option has groups of 1000000 weights"),
    ],
)
def test_a_group_size_that_does_not_fit_the_unit_is_refused(unit: StepUnit, group: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Option(4, unit=unit, group=group)


@settings(derandomize=True, deadline=None)
@given(options, st.integers(1, 600), st.integers(1, 5000))
def test_the_size_counts_every_code_and_every_16_bit_step(option: Option, channels: int, fan_in: int) -> None:
    steps = {
        StepUnit.TENSOR: 1,
        StepUnit.CHANNEL: channels,
        StepUnit.GROUP: channels * math.ceil(fan_in / max(option.group, 1)),
    }[option.unit]
    assert option.size_bits(channels, fan_in) == sum(
        option.bits * channels * fan_in + 16 * steps for _ in range(option.points)
    )
