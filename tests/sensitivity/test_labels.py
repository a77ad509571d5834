"""Cotangents: factors of the Fisher information of the output distribution."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apportion.errors import InputError
from apportion.sensitivity.labels import Labels, cotangents, noise_count

REPEATS = 20_000


def fisher(logits: Tensor) -> Tensor:
    """``diag(p) - p p'``, shape (..., classes, classes), float64."""
    p = logits.double().softmax(-1)
    return torch.diag_embed(p) - p[..., :, None] * p[..., None, :]


def outer(directions: Tensor) -> Tensor:
    """``sum_r u_r u_r'``, shape (..., classes, classes)."""
    wide = directions.double()
    return (wide[..., :, None] * wide[..., None, :]).sum(0)


def some_logits(seed: int, classes: int, spread: float) -> Tensor:
    return spread * torch.randn(2, classes, generator=torch.Generator().manual_seed(seed))


seeds = st.integers(0, 10_000)
spreads = st.floats(0.0, 30.0)


@settings(derandomize=True, deadline=None)
@given(seeds, st.integers(1, 20), spreads)
def test_all_classes_give_exactly_the_fisher_information(seed: int, classes: int, spread: float) -> None:
    logits = some_logits(seed, classes, spread)
    directions = cotangents(logits, Labels.ALL, 1, None)
    assert len(directions) == classes
    torch.testing.assert_close(outer(directions), fisher(logits), rtol=1e-5, atol=1e-6)


@settings(derandomize=True, deadline=None)
@given(seeds, st.integers(1, 20), spreads, st.sampled_from(list(Labels)), st.integers(1, 24))
def test_directions_add_up_to_zero_over_classes(
    seed: int, classes: int, spread: float, labels: Labels, draws: int
) -> None:
    # Adding a constant to all logits changes no probability, so it must have no weight.
    logits = some_logits(seed, classes, spread)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(2, noise_count(labels, draws, classes), generator=generator)
    directions = cotangents(logits, labels, draws, noise)
    assert bool(torch.isfinite(directions).all())
    torch.testing.assert_close(directions.sum(-1), torch.zeros(len(directions), 2), rtol=0, atol=1e-5)


@settings(derandomize=True, deadline=None)
@given(seeds, st.integers(3, 20), spreads, st.integers(2, 4))
def test_leading_directions_never_exceed_the_fisher_information(
    seed: int, classes: int, spread: float, draws: int
) -> None:
    logits = some_logits(seed, classes, spread)
    noise = torch.rand(2, draws - 1 + classes, generator=torch.Generator().manual_seed(seed))
    leading = cotangents(logits.double(), Labels.PROJECTED, draws, noise)[:-1]
    left = torch.linalg.eigvalsh(fisher(logits) - outer(leading))
    assert float(left.min()) >= -1e-9


@pytest.mark.parametrize("labels", [Labels.SAMPLED, Labels.PROJECTED])
@pytest.mark.parametrize("spread", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("draws", [1, 2, 3, 9])
def test_drawn_directions_are_right_on_average(labels: Labels, spread: float, draws: int) -> None:
    logits = some_logits(1, 5, spread)[:1].expand(REPEATS, 5)
    noise = torch.rand(REPEATS, noise_count(labels, draws, 5), generator=torch.Generator().manual_seed(0))
    each = cotangents(logits, labels, draws, noise).double()
    products = (each[..., :, None] * each[..., None, :]).sum(0)
    standard_error = products.std(0) / REPEATS**0.5
    difference = (products.mean(0) - fisher(logits[0])).abs()
    # 25 entries, of which none is allowed beyond 4.5 standard errors.
    assert bool((difference <= 4.5 * standard_error + 1e-6).all())


@pytest.mark.parametrize("draws", [2, 3])
def test_projected_directions_vary_less_than_sampled_ones(draws: int) -> None:
    logits = some_logits(3, 8, 4.0)[:1].expand(REPEATS, 8)
    spread = {}
    for labels in (Labels.SAMPLED, Labels.PROJECTED):
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand(REPEATS, noise_count(labels, draws, 8), generator=generator)
        each = cotangents(logits, labels, draws, noise).double()
        change = torch.linspace(-1, 1, 8, dtype=torch.float64)
        spread[labels] = float((each @ change).square().sum(0).std())
    assert spread[Labels.PROJECTED] < 0.5 * spread[Labels.SAMPLED]


def test_a_sample_without_doubt_has_directions_of_zero() -> None:
    logits = torch.tensor([[0.0, 500.0, 0.0]])
    for labels in Labels:
        noise = torch.full((1, noise_count(labels, 2, 3)), 0.25)
        assert float(cotangents(logits, labels, 2, noise).abs().max()) < 1e-12


def test_all_classes_are_refused_where_they_would_take_too_many_passes() -> None:
    with pytest.raises(InputError, match=r"65 classes at 1 positions.*projected"):
        cotangents(torch.zeros(2, 65), Labels.ALL, 1, None)
    with pytest.raises(InputError, match=r"5 classes at 3 positions"):
        cotangents(torch.zeros(2, 3, 5), Labels.ALL, 1, None)
