"""Which of two networks loses less on other samples, told by a typical one of them."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apportion.reconstruct.held_out import typical_ratio

LOSSES = st.integers(1, 12).flatmap(
    lambda count: st.tuples(*[st.lists(st.floats(0, 100), min_size=count, max_size=count)] * 2)
)


def tensors(losses: tuple[list[float], list[float]]) -> tuple[Tensor, Tensor]:
    one, other = losses
    return torch.tensor(one, dtype=torch.float64), torch.tensor(other, dtype=torch.float64)


@settings(derandomize=True, deadline=None)
@given(losses=LOSSES, scale=st.floats(0.01, 100))
def test_it_is_the_inverse_the_other_way_round_and_knows_no_unit(
    losses: tuple[list[float], list[float]], scale: float
) -> None:
    one, other = tensors(losses)
    found = typical_ratio(one, other)
    assert math.isclose(found * typical_ratio(other, one), 1, rel_tol=1e-9)
    if float(torch.cat([one, other]).median()) > 1e-200:
        assert math.isclose(typical_ratio(scale * one, scale * other), found, rel_tol=1e-9)


@settings(derandomize=True, deadline=None)
@given(losses=LOSSES)
def test_it_lies_between_the_least_and_the_greatest_ratio(losses: tuple[list[float], list[float]]) -> None:
    one, other = tensors(losses)
    ratios = torch.cat([(one / other).nan_to_num(1.0), torch.ones(1)])
    assert float(ratios.min()) * (1 - 1e-9) <= typical_ratio(one, other) <= float(ratios.max()) * (1 + 1e-9)


def test_one_sample_counts_no_more_than_its_logarithm() -> None:
    one, other = torch.ones(64), torch.full((64,), 0.9)
    other[0] = 20.0
    assert float(other.mean()) > float(one.mean())
    assert typical_ratio(other, one) < 1


def test_losses_count_beside_the_typical_one_and_not_beside_their_mean() -> None:
    one, other = torch.tensor([0.5] * 7 + [1e6]), torch.tensor([1.0] * 7 + [1e6])
    assert typical_ratio(one, other) < 0.8


def test_where_most_samples_lose_nothing_the_others_decide() -> None:
    one, other = torch.tensor([0.0, 0.0, 1.0, 1e-12]), torch.tensor([0.0, 0.0, 2.0, 0.0])
    assert typical_ratio(one, other) < 1


def test_losses_far_below_the_median_are_alike() -> None:
    one, other = torch.tensor([1.0, 1.0, 1e-9]), torch.tensor([1.0, 1.0, 1e-12])
    assert math.isclose(typical_ratio(one, other), 1, rel_tol=1e-8)


def test_a_loss_that_rounding_makes_negative_is_none() -> None:
    one, other = torch.tensor([-1e-9, -1e-9, 1.0]), torch.tensor([-1e-9, 1e-9, 2.0])
    assert typical_ratio(one, other) == typical_ratio(one.clamp_min(0), other.clamp_min(0)) < 1
