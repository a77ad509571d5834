"""Drops of quality between two networks on the same samples, each with its 95% interval.

The float and the changed network see the same inputs, so what counts is the difference sample by sample. It
varies far less than either quality does, and an interval that forgot the pairing would be several times too
wide.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

from torch import Tensor

__all__ = ["CONFIDENCE", "PairedDrop", "accuracy_drop", "mean_drop", "perplexity_rise"]

CONFIDENCE = 0.95
"""Share of repetitions in which an interval holds the true value."""

Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


class PairedDrop(NamedTuple):
    """A drop as measured, and the interval that holds the true one with a confidence of 95%.

    Parameters
    ----------
    value, low, high : float
        ``low <= value <= high``; above 0 is worse than the float network.
    """

    value: float
    low: float
    high: float


def accuracy_drop(right: Tensor, float_right: Tensor) -> PairedDrop:
    """``mean(float_right) - mean(right)``: the share of right answers that was lost, 0.001 for 0.1 points.

    With one answer per sample the interval is that of Newcombe for paired shares, from the Wilson intervals
    of both shares and the correlation between them: it keeps its confidence also where no answer, or nearly
    none, changed. With several answers per sample, which depend on one another, it is `mean_drop` over
    samples.

    Parameters
    ----------
    right, float_right : bool Tensor, shape (samples, ...)
        Whether the changed and the float network answer rightly.

    Notes
    -----
    R. G. Newcombe, "Improved confidence intervals for the difference between binomial proportions based on
    paired data", Statistics in Medicine 17, 1998, method 10.
    """
    if right.ndim > 1:
        return mean_drop(float_right.double().flatten(1).mean(1) - right.double().flatten(1).mean(1))
    count = len(right)
    both = int((right & float_right).sum())
    lost = int((float_right & ~right).sum())
    gained = int((right & ~float_right).sum())
    neither = count - both - lost - gained
    before, after = (both + lost) / count, (both + gained) / count
    before_low, before_high = _wilson(both + lost, count)
    after_low, after_high = _wilson(both + gained, count)
    correlation = _correlation(both, lost, gained, neither)
    drop = (lost - gained) / count
    return PairedDrop(
        drop,
        drop - _combined(before - before_low, after_high - after, correlation),
        drop + _combined(before_high - before, after - after_low, correlation),
    )


def mean_drop(difference: Tensor) -> PairedDrop:
    """Mean of the differences, with the normal interval ``mean -+ 1.96 s / sqrt(samples)``.

    Parameters
    ----------
    difference : Tensor, shape (samples,)
        How much worse every sample became, such as its KL to the float output. With a single sample nothing
        is known of the spread, and the interval is the value alone.
    """
    difference = difference.double()
    mean = float(difference.mean())
    margin = Z * float(difference.std()) / math.sqrt(len(difference)) if len(difference) > 1 else 0.0
    return PairedDrop(mean, mean - margin, mean + margin)


def perplexity_rise(cross_entropy: Tensor, float_cross_entropy: Tensor) -> PairedDrop:
    """``exp(mean(cross_entropy)) / exp(mean(float_cross_entropy)) - 1``: 0.01 for a perplexity 1% higher.

    The interval is that of the mean difference, through the same exponential.

    Parameters
    ----------
    cross_entropy, float_cross_entropy : Tensor, shape (samples,)
        Mean over the tokens of a sample, nats.
    """
    return PairedDrop(*(math.expm1(end) for end in mean_drop(cross_entropy - float_cross_entropy)))


def _wilson(hits: int, count: int) -> tuple[float, float]:
    """Interval of a share by inverting the score test (Wilson, 1927)."""
    middle = (hits + Z * Z / 2) / (count + Z * Z)
    margin = Z * math.sqrt(hits * (count - hits) / count + Z * Z / 4) / (count + Z * Z)
    # At no hit and at all hits the end is the share itself, but for rounding.
    share = hits / count
    return min(middle - margin, share), max(middle + margin, share)


def _correlation(both: int, lost: int, gained: int, neither: int) -> float:
    """Phi of the four counts, drawn towards 0 as method 10 does, since few counts overstate it."""
    margins = (both + lost) * (gained + neither) * (both + gained) * (lost + neither)
    if margins == 0:
        return 0.0
    determinant = both * neither - lost * gained
    half = (both + lost + gained + neither) / 2
    corrected = max(determinant - half, 0.0) if determinant > 0 else float(determinant)
    return corrected / math.sqrt(margins)


def _combined(one: float, other: float, correlation: float) -> float:
    """Margin of a difference from the margins of its two correlated parts."""
    return math.sqrt(max(one * one - 2 * correlation * one * other + other * other, 0.0))
