"""Search of the step of a grid, one per row, and the 16-bit form in which steps are stored."""

from __future__ import annotations

import enum
import math

import torch
from torch import Tensor

from .grid import Grid

__all__ = ["StepSearch", "row_error", "search_steps", "storable_steps"]

# Coarse-to-fine search. The error of a long row is smooth in the step; that of a short one is jagged, and
# cheap to try more often.
CANDIDATES = 20
SMOOTH_WEIGHTS = 256
MOST_REPEATS = 16
REFITS = 2
# A step this much smaller than the largest of its tensor would fall out of half precision's normal range.
SMALLEST_RATIO = 2.0**-28
HALF_SIGNIFICAND = 2.0**11


class StepSearch(enum.StrEnum):
    """What the step minimises: nothing (cover the largest weight), the squared error, or a p-norm."""

    MIN_MAX = "minmax"
    MSE = "mse"
    P_NORM = "pnorm"


def search_steps(rows: Tensor, grid: Grid, method: StepSearch = StepSearch.MSE, p: float = 2.0) -> Tensor:
    """The step of every row.

    ``minmax``: the least step at which nothing clips. ``mse`` and ``pnorm``: the step that minimises
    ``sum |w - step * code(w)|^p`` (p = 2 for ``mse``), searched on a geometric range from half the
    optimal step of a Gaussian row up to ``minmax``, then around the best; for p = 2 the closed form
    ``<w, q> / <q, q>`` at fixed codes follows.

    Parameters
    ----------
    rows : Tensor, shape (rows, weights)
        Real weights; a row of zeros gets the step 1.
    p : float
        Exponent of ``pnorm``, at least 1.

    Returns
    -------
    Tensor, shape (rows,)
        Positive steps.

    References
    ----------
    p-norm steps: Nahshan et al., "Loss aware post-training quantization", 2019, section 3.
    """
    low, high = rows.amin(1), rows.amax(1)
    cover = torch.maximum(high / max(grid.qmax, 1), -low / max(grid.qmin, 1))
    zero = cover <= 0
    cover = torch.where(zero, 1.0, cover)
    if method is StepSearch.MIN_MAX:
        return cover
    exponent = 2.0 if method is StepSearch.MSE else p
    rms = rows.square().mean(1).sqrt_()
    # The optimal step of a Gaussian is close to 4 sigma / levels^0.87; half of it is below any optimum.
    first = torch.minimum(rms * (2.0 / (grid.qmin + grid.qmax + 1) ** 0.87), cover)
    first = torch.where(zero, 1.0, first.clamp_min(torch.finfo(rows.dtype).tiny))
    last = cover * 1.05
    count = CANDIDATES * min(MOST_REPEATS, 1 + SMOOTH_WEIGHTS // rows.shape[1])
    best = _best_of(rows, grid, first, last, count, exponent)
    neighbour = (last / first) ** (1.0 / (count - 1))
    best = _best_of(rows, grid, best / neighbour, best * neighbour, CANDIDATES, exponent)
    if exponent == 2.0:
        best = _refit(rows, grid, best)
    return torch.where(zero, 1.0, best)


def row_error(rows: Tensor, grid: Grid, steps: Tensor, exponent: float = 2.0) -> Tensor:
    """``sum |w - step * code(w)|^exponent`` of every row, shape (rows,)."""
    step = steps[:, None]
    error = grid.codes(rows, step).mul_(step).sub_(rows)
    return error.square_().sum(1) if exponent == 2.0 else error.abs_().pow_(exponent).sum(1)


def storable_steps(steps: Tensor) -> Tensor:
    """Steps rounded to what 16 bits hold: 11 significant bits, at least 2^-28 of the tensor's largest.

    A tensor of steps is stored as half-precision numbers times one power of two, so that the precision
    does not depend on the scale of the weights; see `steps_to_half`. Zero steps stay zero.
    """
    significand, exponent = torch.frexp(steps)
    rounded = torch.ldexp((significand * HALF_SIGNIFICAND).round_() / HALF_SIGNIFICAND, exponent)
    floor = _power_of_two_below(steps) * SMALLEST_RATIO
    small = (rounded != 0) & (rounded.abs() < floor)
    return torch.where(small, torch.copysign(floor, rounded), rounded)


def steps_to_half(steps: Tensor) -> tuple[Tensor, int]:
    """Half-precision numbers and the exponent e with ``steps = half * 2^e`` exactly."""
    exponent = int(math.log2(float(_power_of_two_below(steps)))) - 14
    return torch.ldexp(steps, torch.tensor(-exponent)).to(torch.float16), exponent


def steps_from_half(half: Tensor, exponent: int) -> Tensor:
    """The inverse of `steps_to_half`."""
    return torch.ldexp(half.to(torch.float32), torch.tensor(exponent))


def _best_of(rows: Tensor, grid: Grid, first: Tensor, last: Tensor, count: int, exponent: float) -> Tensor:
    ratio = (last / first) ** (1.0 / (count - 1))
    step, best = last, last
    least = torch.full_like(first, torch.inf)
    for _ in range(count):
        error = row_error(rows, grid, step, exponent)
        better = error < least
        least = torch.where(better, error, least)
        best = torch.where(better, step, best)
        step = step / ratio
    return best


def _refit(rows: Tensor, grid: Grid, steps: Tensor) -> Tensor:
    least = row_error(rows, grid, steps)
    for _ in range(REFITS):
        codes = grid.codes(rows, steps[:, None])
        norm = codes.square().sum(1)
        fitted = (codes * rows).sum(1) / norm.clamp_min(1.0)
        fitted = torch.where(fitted > 0, fitted, steps)
        error = row_error(rows, grid, fitted)
        better = error < least
        steps = torch.where(better, fitted, steps)
        least = torch.where(better, error, least)
    return steps


def _power_of_two_below(steps: Tensor) -> Tensor:
    largest = steps.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
    _, exponent = torch.frexp(largest)
    return torch.ldexp(torch.ones_like(largest), exponent - 1)
