"""Efficient combinations against looking at all pairs, and joining against listing everything."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.allocator import Columns, efficient, joined


def columns(seed: int, count: int, quantities: int, things: int = 1) -> Columns:
    random = np.random.default_rng(seed)
    return Columns(
        random.integers(0, 6, count).astype(float),
        random.integers(0, 6, (quantities, count)),
        np.tile(np.arange(count), (things, 1)),
    )


@settings(derandomize=True, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 700), st.integers(1, 3))
def test_what_is_left_out_is_covered_and_what_is_kept_is_not(seed: int, count: int, quantities: int) -> None:
    whole = columns(seed, count, quantities)
    kept = efficient(whole)
    points = np.concatenate([whole.loss[None], whole.costs])
    best = np.concatenate([kept.loss[None], kept.costs])
    covers = (best[:, :, None] <= points[:, None, :]).all(axis=0)
    assert covers.any(axis=0).all()
    inside = (best[:, :, None] <= best[:, None, :]).all(axis=0)
    assert inside.sum() == len(kept)
    assert (points[:, kept.choice[0]] == best).all()


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.integers(1, 2))
def test_joining_is_the_efficient_part_of_all_combinations(seed: int, quantities: int) -> None:
    parts = [columns(seed + number, 5, quantities, things) for number, things in enumerate((1, 2, 1))]
    found = joined(parts, quantities)
    every = list(itertools.product(range(5), repeat=3))
    whole = Columns(
        np.array([sum(part.loss[i] for part, i in zip(parts, row, strict=True)) for row in every]),
        np.array(
            [sum(part.costs[:, i] for part, i in zip(parts, row, strict=True)) for row in every]
        ).T.reshape(quantities, -1),
        np.array([[row[0], row[1], row[1], row[2]] for row in every]).T,
    )
    expected = efficient(whole)
    points = [set(map(tuple, np.concatenate([each.loss[None], each.costs]).T)) for each in (found, expected)]
    assert points[0] == points[1]
    for column in range(len(found)):
        a, b, c, d = found.choice[:, column]
        assert b == c
        total = sum(part.loss[i] for part, i in zip(parts, (a, b, d), strict=True))
        assert total == found.loss[column]
