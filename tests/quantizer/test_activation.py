"""Activation options, option sets, and the search of ranges against trying every range."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.errors import InputError
from apportion.quantizer import (
    ActivationGrid,
    ActivationOption,
    RangeSearch,
    RangeSettings,
    activation_part,
    candidate_ranges,
    fit_range,
    leans_on_few,
    option_names,
    parse_activation,
    parse_option_set,
    weight_part,
)


@given(st.integers(2, 8), st.booleans())
def test_an_activation_option_reads_back(bits: int, dynamic: bool) -> None:
    option = ActivationOption(bits, dynamic)
    assert parse_activation(str(option)) == option
    assert option.levels == 2**bits - 1


def test_an_option_set_has_every_weight_with_every_activation() -> None:
    for text, weights, activations in (
        ("w4a8", "w4", "a8"),
        ("w2..8a8", "w2..8", "a8"),
        ("w4a4..8,w2x2", None, None),
        ("w4a4..6", "w4", "a4,a5,a6"),
        ("w3x2a6,w8a8d", "w3x2,w8", "a6,a8d"),
        ("w4g64a8,w4ta8", "w4g64,w4t", "a8"),
        ("w2..4", "w2..4", ""),
    ):
        if weights is None:
            with pytest.raises(InputError, match="not for w2x2; every option of the weights goes with every"):
                parse_option_set(text)
            continue
        found = parse_option_set(text)
        assert tuple(map(str, found.weights)) == option_names(weights)
        assert tuple(map(str, found.activations)) == tuple(filter(None, (activations or "").split(",")))


def test_parts_of_a_list_are_read_apart() -> None:
    assert weight_part("w4a8,w8, a4") == "w4,w8"
    assert weight_part("w2..8x1..2a4") == "w2..8x1..2"
    assert activation_part("w4a8,w8,w8a4..5,a8d") == "a4,a5,a8,a8d"
    assert activation_part("w4") == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("w4a9", "activation option has 9 bits"),
        ("w4a8..4", "the range 'a8..4' is empty"),
        ("w4ax", "'ax' is not an activation option; write a8"),
        ("a8", "'a8' names no weights; write for example w4a8"),
        ("v4a8", "'v4' is not an option"),
    ],
)
def test_what_is_no_option_set_says_why(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_option_set(text)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.sampled_from([3, 15, 255]), st.booleans(), st.sampled_from([1.0, 2.0, 4.0]))
def test_the_search_is_near_the_best_of_all_ranges(
    seed: int, levels: int, nonnegative: bool, p: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(400, generator=generator) * torch.rand(1, generator=generator).exp() + 0.3
    x = x.relu() if nonnegative else x
    low, high = float(x.min()), float(x.max())
    settings_ = RangeSettings(RangeSearch.P_NORM, p=p)
    found = fit_range(x, levels, nonnegative=nonnegative, settings=settings_)
    shares = [index / 40 for index in range(1, 41)]
    lows = [0.0] if nonnegative else [low * share for share in shares]
    grids = [ActivationGrid.over(a, high * b, levels) for a, b in itertools.product(lows, shares)]
    best = min(grid.error(x, p) for grid in grids)
    # Coordinate by coordinate it may end beside the best, and between the shares better than it.
    assert found.error(x, p) <= 1.15 * best + 1e-12
    assert found.zero_point == 0 or not nonnegative
    whole = ActivationGrid.over(low, high, levels)
    assert found.error(x, p) <= whole.error(x, p)


@given(
    st.floats(-1e4, 1e4), st.floats(-1e4, 1e4), st.sampled_from([3, 7, 255]),
)  # fmt: skip
def test_a_grid_has_zero_in_it_and_reaches_both_ends(one: float, other: float, levels: int) -> None:
    low, high = min(one, other), max(one, other)
    grid = ActivationGrid.over(low, high, levels)
    assert 0 <= grid.zero_point <= levels
    assert float(grid.quantize(torch.zeros(1))) == 0
    for end in (low, high):
        assert abs(float(grid.quantize(torch.tensor([end]))) - end) <= grid.step * 1.001 or grid.step == 1.0


@pytest.mark.parametrize("search", [RangeSearch.MSE, RangeSearch.PERCENTILE])
def test_a_number_counts_as_often_as_its_weight_says(search: RangeSearch) -> None:
    x = torch.randn(600, generator=torch.Generator().manual_seed(1)) * 3
    times = torch.randint(1, 20, (600,), generator=torch.Generator().manual_seed(2))
    found, repeated = (
        fit_range(
            numbers, 15, weights=weights, nonnegative=False,
            settings=RangeSettings(search, percentile=97),
        )
        for numbers, weights in ((x, times.float()), (x.repeat_interleave(times), None))
    )  # fmt: skip
    assert found.step == pytest.approx(repeated.step)
    assert found != fit_range(x, 15, nonnegative=False, settings=RangeSettings(search, percentile=97))


def test_candidates_cut_the_farther_end_and_keep_the_nearer() -> None:
    x = torch.cat([torch.linspace(-0.2, 1, 99_999), torch.tensor([9.0])])
    for sign in (1, -1):
        values = sign * x
        first, *others = candidate_ranges(
            values, 255, weights=torch.ones(len(x)), nonnegative=False, massive=False
        )
        assert first == fit_range(values, 255, nonnegative=False, settings=RangeSettings(RangeSearch.MSE))
        assert len(others) == 3
        for grid in others:
            low, high = sorted(sign * end for end in (-0.2, 1.0))
            assert -grid.zero_point * grid.step == pytest.approx(low, abs=0.02)
            assert (255 - grid.zero_point) * grid.step == pytest.approx(high, abs=0.02)
        for search in set(RangeSearch) - {RangeSearch.LOSS}:
            settings_ = RangeSettings(search)
            alone = candidate_ranges(
                values, 255, weights=torch.ones(len(x)), nonnegative=False, massive=False, settings=settings_
            )
            assert alone == (fit_range(values, 255, nonnegative=False, settings=settings_),)


def test_a_value_leans_on_few_numbers_that_are_most_of_its_size() -> None:
    many = torch.randn(99_999, generator=torch.Generator().manual_seed(0))
    for massive, leans in ((100.0, False), (150.0, False), (250.0, True)):
        numbers = torch.cat([many, torch.tensor([-massive])])
        share = massive**2 / float(numbers.square().sum())
        assert leans_on_few(numbers, torch.ones(len(numbers))) is leans is (share > 0.3)
        found = candidate_ranges(
            numbers, 255, weights=torch.ones(len(numbers)), nonnegative=False, massive=leans
        )
        lows = [-grid.zero_point * grid.step for grid in found]
        assert (min(lows) == pytest.approx(-massive, rel=0.01)) is leans
        assert len(found) == (8 if leans else 4)
    assert not leans_on_few(torch.zeros(10), torch.ones(10))
    # All but a few zero: nothing is left where fewer than there are of them are cut off.
    sparse = torch.cat([torch.zeros(99_999), torch.full((1,), 0.01)])
    found = candidate_ranges(sparse, 255, weights=torch.ones(100_000), nonnegative=True, massive=False)
    assert all(0 < grid.step <= 0.01 / 255 * 1.001 for grid in found)


def test_no_candidate_cuts_off_most_of_a_value() -> None:
    """Outliers that are more than 0.01% of all numbers: only derivatives would tell what their loss costs."""
    many = torch.randn(99_500, generator=torch.Generator().manual_seed(0))
    numbers = torch.cat([many, torch.full((500,), 80.0)])
    assert not leans_on_few(numbers, torch.ones(len(numbers)))
    found = candidate_ranges(numbers, 255, weights=torch.ones(len(numbers)), nonnegative=False, massive=False)
    squares = numbers.square()
    for grid in found[1:]:
        high = (255 - grid.zero_point) * grid.step
        assert float(squares[numbers > high + grid.step].sum()) < 0.6 * float(squares.sum())


def test_min_max_clips_nothing_and_percentiles_clip_the_rest() -> None:
    x = torch.cat([torch.linspace(-1, 2, 9999), torch.tensor([50.0])])
    whole = fit_range(x, 255, nonnegative=False, settings=RangeSettings(RangeSearch.MIN_MAX))
    assert whole.step == pytest.approx(51 / 255)
    cut = fit_range(
        x, 255, nonnegative=False, settings=RangeSettings(RangeSearch.PERCENTILE, percentile=99.9)
    )
    assert cut.step == pytest.approx(3 / 255, rel=0.01)
    assert fit_range(torch.zeros(9), 15, nonnegative=False) == ActivationGrid(1.0, 0, 15)
    mostly_zero = torch.cat([torch.zeros(99_990), torch.linspace(0.1, 0.3, 10)])
    for sign in (1, -1):
        values = sign * mostly_zero
        found = fit_range(
            values, 255, nonnegative=sign > 0,
            settings=RangeSettings(RangeSearch.PERCENTILE, percentile=99.9),
        )  # fmt: skip
        assert found == ActivationGrid.over(float(values.min()), float(values.max()), 255)
    with pytest.raises(InputError, match="percentile is 50"):
        RangeSettings(percentile=50)
