"""The search for the least size within a limit: few evaluations, never an answer measured outside."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.allocator import SearchOutcome
from apportion.reconstruct.least import EVALUATIONS, RESOLUTION, Least, Tried, least_within

LEAST, GREATEST = 200_000, 800_000
"""Two to eight bits for 100,000 weights."""

Curve = Callable[[int], float]


def predicted(bits: int) -> float:
    """A factor of four per bit, as losses fall for real networks."""
    return 4.0 ** (2 - bits / 100_000)


def search(
    measured: Curve, limit: float, *, lump: int = 1, evaluations: int = EVALUATIONS
) -> tuple[Least[str], list[int]]:
    """Search over plans whose sizes come in lumps of bits, as layers do."""
    asked: list[int] = []

    def attempt(bits: int) -> Tried[str]:
        asked.append(bits)
        size = max(LEAST, bits - bits % lump)
        return Tried(bits, size, measured(size), f"plan of {size}")

    found = least_within(
        attempt,
        predicted,
        least=LEAST,
        greatest=GREATEST,
        limit=limit,
        first_loss=limit,
        evaluations=evaluations,
    )
    return found, asked


def crossing(measured: Curve, limit: float) -> int:
    """Slow and obvious: the least size within the limit, of a curve that falls."""
    return next(bits for bits in range(LEAST, GREATEST + 1, 100) if measured(bits) <= limit)


@pytest.mark.parametrize("limit", [0.5, 0.1, 0.01, 0.002])
@pytest.mark.parametrize("ratio", [1.0, 0.3, 5.0])
def test_a_measured_curve_like_the_predicted_one_is_found_within_one_percent(
    limit: float, ratio: float
) -> None:
    def measured(bits: int) -> float:
        return ratio * predicted(bits)

    found, asked = search(measured, limit)
    best = found.best
    assert best is not None
    assert best.drop <= limit
    assert found.outcome is (SearchOutcome.LEAST if measured(LEAST) <= limit else SearchOutcome.NARROWED)
    # The bracket's width, and the grid of the reference.
    assert best.size_bits <= crossing(measured, limit) * (1 + RESOLUTION) + 100
    assert len(asked) <= 6


def test_what_is_known_is_not_asked_and_bounds_the_search() -> None:
    known = Tried(500_000, 499_000, 0.01, "known")
    asked: list[int] = []

    def attempt(bits: int) -> Tried[str]:
        asked.append(bits)
        return Tried(bits, bits, 0.01 if bits >= 480_000 else 0.5, "tried")

    found = least_within(
        attempt, predicted, least=LEAST, greatest=GREATEST, limit=0.02, first_loss=0.02, begin=known
    )
    assert max(asked) < known.size_bits
    assert found.tried[0] is known
    assert found.best is not None
    assert 480_000 <= found.best.size_bits <= 480_000 * (1 + RESOLUTION)


def test_where_measured_losses_leave_the_prediction_the_crossing_is_still_found() -> None:
    def measured(bits: int) -> float:
        # Far above the prediction at few bits, and flat at many: what real networks do.
        return 20 * predicted(bits) ** 1.6 + 0.002

    found, asked = search(measured, 0.01)
    assert found.best is not None
    assert found.outcome is SearchOutcome.NARROWED
    assert found.best.size_bits <= crossing(measured, 0.01) * (1 + RESOLUTION) + 100
    assert len(asked) <= EVALUATIONS


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    seed=st.integers(0, 2**32 - 1),
    limit=st.floats(0.0, 0.3),
    noise=st.floats(0.0, 1.5),
    steps=st.sampled_from([0, 100, 1000]),
    lump=st.sampled_from([1, 7_000, 90_000]),
    evaluations=st.integers(1, 14),
)
def test_whatever_is_measured_the_answer_was_within_and_no_budget_is_asked_twice(
    seed: int, limit: float, noise: float, steps: int, lump: int, evaluations: int
) -> None:
    rng = np.random.default_rng(seed)
    factors = np.exp(noise * rng.normal(size=1000))
    shift = 0.05 * rng.normal()

    def measured(bits: int) -> float:
        # Not monotone, sometimes below 0, and with steps: shares of answers come in steps of one sample.
        drop = predicted(bits) * factors[bits % 1000] + shift
        return math.floor(drop * steps) / steps if steps else drop

    found, asked = search(measured, limit, lump=lump, evaluations=evaluations)
    assert len(asked) == len(set(asked)) <= evaluations
    assert all(LEAST <= bits <= GREATEST for bits in asked)
    within = [tried for tried in found.tried if tried.drop <= limit]
    assert (found.best is None) == (not within)
    if found.best is not None:
        assert found.best.drop <= limit
        assert found.best.size_bits == min(tried.size_bits for tried in within)
    if found.outcome is SearchOutcome.NARROWED:
        assert found.best is not None
        outside = max(tried.budget_bits for tried in found.tried if tried.drop > limit)
        assert found.best.size_bits - outside <= max(1, RESOLUTION * found.best.size_bits)
    if found.outcome is SearchOutcome.NONE:
        assert GREATEST in asked
        assert found.best is None


@pytest.mark.parametrize("drop", [0.5, 1e9, math.inf])
def test_a_limit_that_nothing_reaches_is_known_once_the_greatest_was_measured(drop: float) -> None:
    found, asked = search(lambda bits: drop, 0.01)
    assert found.best is None
    assert found.outcome is SearchOutcome.NONE
    assert asked[-1] == GREATEST
    assert len(asked) <= 6


@pytest.mark.parametrize("drop", [0.0, -0.01, 0.009])
def test_a_limit_that_everything_keeps_gives_the_least(drop: float) -> None:
    found, asked = search(lambda bits: drop, 0.01)
    assert found.best is not None
    assert found.best.size_bits == LEAST
    assert found.outcome is SearchOutcome.LEAST
    assert len(asked) <= 6


def test_a_last_evaluation_is_spent_on_the_greatest_rather_than_on_no_answer() -> None:
    found, asked = search(lambda bits: 0.0 if bits == GREATEST else 1.0, 0.01, evaluations=2)
    assert asked[-1] == GREATEST
    assert found.best is not None
    assert found.best.size_bits == GREATEST


def test_a_jump_without_logarithms_is_bracketed_by_halving() -> None:
    edge = 433_210
    found, asked = search(lambda bits: -0.001 if bits >= edge else 0.02, 0.0)
    assert found.best is not None
    assert edge <= found.best.size_bits <= edge * (1 + RESOLUTION)
    assert len(asked) <= EVALUATIONS
