"""Which part of the calibration data a method learns from, and which part judges what it learned."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError

__all__ = ["check_held_out", "learned_and_judged", "typical_ratio"]


def check_held_out(method: str, share: float) -> None:
    """Refuse a share of held-out data that is none."""
    if not 0 < share < 1:
        raise InputError(
            f"{method} holds out {share} of the calibration data; it is a share between 0 and 1, such as "
            "0.0625"
        )


def learned_and_judged(samples: int, share: float) -> tuple[range, range]:
    """The first samples, which are learned from, and the last `share` of them, which judge.

    Of several samples at least one is on either side; a single one has to do for both.
    """
    learned = max(1, samples - max(1, round(share * samples)))
    return range(learned), range(learned, samples) if learned < samples else range(samples)


def typical_ratio(one: Tensor, other: Tensor) -> float:
    """Geometric mean of ``(one + m) / (other + m)`` over samples, with m the median of all losses above 0.

    Losses of samples span orders of magnitude, so that a mean of a few dozen tells of the worst one or two:
    which of two networks loses less on other samples is better told by their logarithms. Losses far below
    the median count as alike, for their ratios are noise.

    Parameters
    ----------
    one, other : Tensor, shape (samples,)
        Of the same samples; what rounding makes negative counts as 0.
    """
    one, other = one.double().clamp_min(0), other.double().clamp_min(0)
    both = torch.cat([one, other])
    above = both[both > 0]
    middle = above.median() if len(above) else both.new_ones(())
    return float(((one + middle).log() - (other + middle).log()).mean().exp())
