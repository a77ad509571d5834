"""How much GPTQ's Gram matrix is damped: as much as samples that it is not of ask for."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .gram import InputGram, factored, placed

__all__ = ["confirmed_damping", "unseen_share"]

TIMES, MOST = 10.0, 100.0
"""Each damping over the one before, and where it ends: GPTQ is close to rounding to nearest there."""
PROBES = 64
"""Directions by which a trace is estimated."""


def confirmed_damping(inputs: InputGram, least: float, order: Tensor) -> float:
    """The damping at which GPTQ on one half of the samples leaves the least error on the other half.

    With U the factor of ``H^-1 = U' U`` and R what single columns are off by, rounded as they then are, the
    error of GPTQ's weights is R T, where T is U with rows divided by its diagonal. Columns rounded to the
    nearest of a grid are off by much the same and independently, so that on inputs with the Gram matrix G

        error = trace(T G T')

    up to a factor that depends neither on the damping nor on weights and options. Few samples, such as one
    row an image in front of a classifier, have directions in which they hardly vary; undamped, GPTQ puts all
    errors there, and on other samples is worse than rounding to nearest.

    Parameters
    ----------
    inputs : InputGram
        Without sums of one half, `least` is the answer.
    least : float
        The damping of a Gram matrix of many samples, in units of the mean of its diagonal.
    order : Tensor, shape (groups, fan_in)
        In which columns are rounded.

    Returns
    -------
    float
        `least` times a power of ten.
    """
    return _confirmed(inputs, least, order)[0]


def unseen_share(inputs: InputGram, least: float, order: Tensor) -> float:
    """GPTQ's error on samples that it was not fitted to over that on those it was, at least 1.

    The closed form of `confirmed_damping` gives what GPTQ of each half leaves on the other half, and what
    GPTQ of all leaves on all. To first order in weights per sample, fitting takes a share r off the error on
    n samples and adds as much to that on others; on half as many it is 2 r, so that the ratio of the two is
    ``(1 + 2 r) / (1 - r)`` and that of n samples ``(1 + r) / (1 - r)``. A refit of steps fits one number more
    for each point and group of a row, which is not counted.

    Parameters
    ----------
    inputs, least, order
        As for `confirmed_damping`.
    """
    damping, unseen = _confirmed(inputs, least, order)
    whole = placed(inputs.gram, order.flip(1))
    seen = _error(whole, whole, damping, _probes(inputs.gram))
    return max(1.0, (2 * unseen / seen + 1) / 3) if unseen < math.inf and seen > 0 else 1.0


def _confirmed(inputs: InputGram, least: float, order: Tensor) -> tuple[float, float]:
    """The damping and the error that it leaves on the halves; infinite where there are none."""
    if inputs.half is None:
        return least, math.inf
    probes, backward = _probes(inputs.gram), order.flip(1)
    one, other = (placed(half.gram, backward) for half in (inputs.half, inputs.without(inputs.half)))
    best, best_error, damping = least, math.inf, least
    while damping <= max(least, MOST):
        error = _error(one, other, damping, probes) + _error(other, one, damping, probes)
        if error >= best_error:
            break
        best, best_error, damping = damping, error, damping * TIMES
    return best, best_error


def _error(fitted: Tensor, judged: Tensor, damping: float, probes: Tensor) -> float:
    """``trace(Z' T G T' Z)`` with T of one Gram matrix, G another and Z the probes, over all groups.

    With columns in reverse, U is the inverse of the lower factor, so that T' Z takes one solution.
    """
    _, lower = factored(fitted, damping)
    scaled = lower.diagonal(dim1=1, dim2=2)[:, :, None] * probes
    spread = torch.linalg.solve_triangular(lower.mT, scaled, upper=True)
    return float((spread * (judged @ spread)).sum())


def _probes(gram: Tensor) -> Tensor:
    """Every direction where they are few, else random signs, shape (fan_in, directions)."""
    size = gram.shape[1]
    if size <= PROBES:
        return torch.eye(size, dtype=gram.dtype, device=gram.device)
    signs = torch.randint(2, (size, PROBES), generator=torch.Generator().manual_seed(0)) * 2 - 1
    return signs.to(gram)
