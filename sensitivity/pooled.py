"""Scores of strips, drawn together within their layer as far as their differences are noise."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .profile import Profile, ProfileArrays
from .unused import FLOOR_ERROR

__all__ = ["pooled_scores"]

MOSTLY_NOISE = 0.5
"""Share of noise above which strips are drawn together; below it small scores are more than luck."""


def pooled_scores(profile: Profile, arrays: ProfileArrays) -> NDArray[np.float64]:
    """Loss of every strip and option, shape (strips of all layers, options), from which strips choose.

    Of many strips, those whose scores came out low by chance are chosen for few bits. Where most of what the
    scores of a layer's strips differ by is noise, they become

        mean + (1 - noise / variance) (score - mean),

    with the mean and the variance over strips, and the mean of their squared standard errors as the noise;
    the share is averaged over options, and at most 1. Whole layers keep their sums. It matters where a strip
    matters for few inputs: of 1,000 classes 128 images tell nothing apart, and by their own scores the
    classes that none of them shows would do with 2 bits.

    References
    ----------
    Efron and Morris, "Stein's estimation rule and its competitors", Journal of the American Statistical
    Association 68, 1973.
    """
    loss, error = arrays.channel_loss.numpy().copy(), arrays.channel_error.numpy()
    # What no sample reached is estimated from elsewhere, and its error says nothing of differences.
    noise = np.where(error == FLOOR_ERROR * loss, 0.0, error) ** 2
    starts = np.cumsum([0, *(layer.strips for layer in profile.layers)])
    for begin, end in pairwise(starts):
        own = loss[begin:end]
        if len(own) == 1:
            continue
        mean, variance = own.mean(axis=0), own.var(axis=0, ddof=1)
        differs = variance > 0
        shares = noise[begin:end].mean(axis=0)[differs] / variance[differs]
        share = min(1.0, float(shares.mean())) if len(shares) else 0.0
        if share > MOSTLY_NOISE:
            loss[begin:end] = mean + (1 - share) * (own - mean)
    return loss
