"""Paired drops: what they are, and that their intervals hold the truth as often as they say."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.network import PairedDrop, accuracy_drop, mean_drop, perplexity_rise

Counts = tuple[int, int, int, int]
COUNTS = st.tuples(*[st.integers(0, 60)] * 4).filter(lambda counts: sum(counts) > 0)


def drop_of(counts: Counts) -> PairedDrop:
    """The drop of so many samples: both right, lost, gained, both wrong."""
    both, lost, gained, neither = counts
    before = [True] * (both + lost) + [False] * (gained + neither)
    after = [True] * both + [False] * lost + [True] * gained + [False] * neither
    return accuracy_drop(torch.tensor(after), torch.tensor(before))


@settings(derandomize=True, deadline=None)
@given(counts=COUNTS)
def test_the_interval_of_an_accuracy_drop_holds_its_value_and_lies_among_shares(counts: Counts) -> None:
    _, lost, gained, _ = counts
    found = drop_of(counts)
    assert found.value == (lost - gained) / sum(counts)
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high


@settings(derandomize=True, deadline=None)
@given(counts=COUNTS)
def test_exchanging_the_networks_turns_the_interval_around(counts: Counts) -> None:
    both, lost, gained, neither = counts
    there, back = drop_of(counts), drop_of((both, gained, lost, neither))
    # Two orders of the same sums in float64.
    assert back == pytest.approx((-there.value, -there.high, -there.low), abs=1e-12)


def test_four_times_the_samples_make_the_interval_about_half_as_wide() -> None:
    few, many = drop_of((900, 20, 15, 65)), drop_of((3600, 80, 60, 260))
    assert (few.high - few.low) / (many.high - many.low) == pytest.approx(2, rel=0.05)


def test_pairing_makes_the_interval_narrower_than_that_of_separate_samples() -> None:
    paired = drop_of((900, 10, 10, 80))
    separate = 2 * 1.96 * math.sqrt(2 * 0.91 * 0.09 / 1000)
    assert paired.high - paired.low < 0.5 * separate


def test_where_no_answer_changed_the_drop_is_still_uncertain() -> None:
    found = drop_of((95, 0, 0, 5))
    assert found.value == 0
    assert found.low < 0 < found.high
    # Three samples in a hundred could change without being seen, one time in twenty.
    assert found.high > 0.01


@pytest.mark.parametrize(
    ("both", "lost", "gained"), [(0.85, 0.05, 0.03), (0.9, 0.02, 0.02), (0.5, 0.2, 0.1), (0.97, 0.01, 0.0)]
)
def test_the_interval_of_an_accuracy_drop_covers_the_truth_nearly_as_often_as_it_says(
    both: float, lost: float, gained: float
) -> None:
    count, truth = 30, lost - gained
    shares = (both, lost, gained, 1 - both - lost - gained)
    covered = 0.0
    for one, two, three in product(range(count + 1), repeat=3):
        four = count - one - two - three
        if four < 0:
            continue
        counts = (one, two, three, four)
        ways = math.factorial(count) / math.prod(map(math.factorial, counts))
        probability = ways * math.prod(share**times for share, times in zip(shares, counts, strict=True))
        if probability < 1e-7:
            continue
        found = drop_of(counts)
        covered += probability * (found.low <= truth <= found.high)
    # Summed over all outcomes; the method holds its level up to a point or two at small counts.
    assert covered >= 0.93


def test_the_drop_of_a_mean_is_the_normal_interval_of_the_differences() -> None:
    found = mean_drop(torch.tensor([0.1, 0.2, 0.3, 0.6]))
    spread = torch.tensor([0.1, 0.2, 0.3, 0.6]).double().std().item() / 2
    assert found.value == pytest.approx(0.3)
    assert found.high - found.value == pytest.approx(1.959964 * spread, rel=1e-5)
    assert found.value - found.low == pytest.approx(found.high - found.value)
    assert mean_drop(torch.tensor([0.25])) == (0.25, 0.25, 0.25)


def test_answers_of_one_sample_count_as_one_cluster() -> None:
    right = torch.tensor([[True, True], [False, False], [True, True], [True, True]])
    float_right = torch.ones(4, 2, dtype=torch.bool)
    assert accuracy_drop(right, float_right) == mean_drop(torch.tensor([0.0, 1.0, 0.0, 0.0]))


def test_a_perplexity_rise_is_the_ratio_of_the_perplexities() -> None:
    before, after = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.1, 2.1, 3.3])
    found = perplexity_rise(after, before)
    ratio = math.exp(float(after.mean())) / math.exp(float(before.mean()))
    assert found.value == pytest.approx(ratio - 1, rel=1e-5)
    assert found.low < found.value < found.high
    assert perplexity_rise(before, before) == (0, 0, 0)
