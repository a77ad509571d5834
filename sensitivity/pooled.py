"""Scores of strips, drawn together within their layer as far as their differences are noise."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .profile import Profile, ProfileArrays
from .unused import unreached

__all__ = ["pooled_scores"]

MOSTLY_NOISE = 0.5
"""Share of noise above which strips are drawn together; below it small scores are more than luck."""


def pooled_scores(profile: Profile, arrays: ProfileArrays) -> NDArray[np.float64]:
    """Loss of every strip and option, shape (strips of all layers, options), from which strips choose.

    Of many strips, those whose scores came out low by chance are chosen for few bits. Where most of what the
    scores of a layer's strips differ by is noise, they become

        mean + (1 - noise / variance) (score - mean),

    with the mean and the variance over strips, and as the noise the mean of their squared standard errors
    without the part in which all rise and fall with the layer's; the share is averaged over options, and at
    most 1. Whole layers keep their sums. It matters where a strip matters for few inputs: of 1,000 classes
    128 images tell nothing apart, and by their own scores the classes that none of them shows would do with
    2 bits.

    References
    ----------
    Efron and Morris, "Stein's estimation rule and its competitors", Journal of the American Statistical
    Association 68, 1973.
    """
    loss, error = arrays.channel_loss.numpy().copy(), arrays.channel_error.numpy()
    # What no sample reached is estimated from elsewhere, and its error says nothing of differences.
    floor = unreached(arrays.channel_loss, arrays.channel_error).numpy()[:, None]
    noise = np.where(floor, 0.0, error) ** 2
    shared = _relative_errors(profile, arrays) ** 2
    starts = np.cumsum([0, *(layer.strips for layer in profile.layers)])
    for row, (begin, end) in enumerate(pairwise(starts)):
        own = loss[begin:end]
        if len(own) == 1:
            continue
        mean, variance = own.mean(axis=0), own.var(axis=0, ddof=1)
        differs = variance > 0
        apart = (noise[begin:end] - shared[row] * own**2).clip(min=0.0).mean(axis=0)
        shares = apart[differs] / variance[differs]
        share = min(1.0, float(shares.mean())) if len(shares) else 0.0
        if share > MOSTLY_NOISE:
            loss[begin:end] = mean + (1 - share) * (own - mean)
    return loss


def _relative_errors(profile: Profile, arrays: ProfileArrays) -> NDArray[np.float64]:
    """Standard error of every layer's loss over the loss, (layers, options); 0 where there is none."""
    losses = arrays.projections.double().square().sum(1).numpy() / 2
    mean, variance = losses.mean(axis=0), losses.var(axis=0)
    error = np.sqrt(variance / max(1, profile.samples - 1))
    relative: NDArray[np.float64] = np.divide(error, mean, out=np.zeros_like(mean), where=mean > 0)
    return relative
