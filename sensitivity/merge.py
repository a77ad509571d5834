"""Scores of two sets of samples, put together without measuring again."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError
from .fisher import FisherScores
from .store import standard_error

__all__ = ["merge_scores"]


def merge_scores(
    first: FisherScores, second: FisherScores, *, factor_rows: int | None = None
) -> FisherScores:
    """Scores over the samples of both, as if they had been measured together.

    Losses are means, so ``loss = (n_1 loss_1 + n_2 loss_2) / (n_1 + n_2)``; sums of squares, from which the
    standard errors follow, add up likewise. Samples that were left out in drawing stay made up for by the
    weights within their own set.

    Parameters
    ----------
    first, second : FisherScores
        Of the same network, options and settings but for the seed, over disjoint samples.
    factor_rows : int
        Most rows of the factors, as in `FisherSettings`; default: all are kept.

    Raises
    ------
    InputError
        The two have other layers, options, strips or draws, or only one has factors.
    """
    shapes = [
        (tuple(scores.projections.shape[1:]), tuple(scores.channel_loss.shape), scores.factors is None)
        for scores in (first, second)
    ]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"scores of shapes {shapes[0][:2]} and {shapes[1][:2]} cannot be merged; measure both with the "
            "same network, options and settings"
        )
    samples = first.samples + second.samples
    total, square = (a + b for a, b in zip(_sums(first), _sums(second), strict=True))
    factors = None
    if first.factors is not None and second.factors is not None:
        swap = len(first.projections) % 2 == 1
        limit = len(first.factors) + len(second.factors) if factor_rows is None else factor_rows
        factors = _merged_rows(first.factors, second.factors, limit // 2, samples, swap=swap)
    return FisherScores(
        samples,
        torch.cat([first.projections, second.projections]),
        total / samples,
        standard_error(total, square, samples),
        factors,
    )


def _sums(scores: FisherScores) -> tuple[Tensor, Tensor]:
    """Sum and sum of squares over samples of the strips' losses: what `standard_error` was made from."""
    mean, error, samples = scores.channel_loss, scores.channel_error, scores.samples
    variance = error.square() * max(1, samples - 1)
    return mean * samples, (variance + mean.square()) * samples


def _merged_rows(first: Tensor, second: Tensor, limit: int, seed: int, *, swap: bool) -> Tensor:
    """Rows of even and of odd samples stay apart; beyond the limit, rows of the second are added to others.

    Parameters
    ----------
    limit : int
        Rows of each half.
    seed : int
        Of the signs that keep products between the two at 0 in expectation.
    swap : bool
        The first has an odd number of samples, behind which even ones of the second are odd.
    """
    signs = torch.rand(len(second), generator=torch.Generator().manual_seed(seed)) < 0.5
    second = second * torch.where(signs, -1.0, 1.0).to(second)[:, None, None]
    later = second.chunk(2)
    halves = []
    for early, late in zip(first.chunk(2), later[::-1] if swap else later, strict=True):
        rows = torch.cat([early, late])
        folded = rows.new_zeros(min(limit, len(rows)), *rows.shape[1:])
        halves.append(folded.index_add_(0, torch.arange(len(rows)) % len(folded), rows))
    return torch.cat(halves)
