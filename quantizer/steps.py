"""Search of the step of a grid, one per row, and the 16-bit form in which steps are stored."""

from __future__ import annotations

import enum
import math

import torch
from torch import Tensor

from ..errors import InputError
from .grid import Grid

__all__ = [
    "StepSearch",
    "check_exponent",
    "least_step",
    "row_error",
    "search_steps",
    "steps_from_half",
    "steps_to_half",
    "storable_steps",
    "unit_rows",
]

# Coarse-to-fine search. The error of a long row is smooth in the step, so that few candidates do; that of a
# short one is jagged, and cheap to try more often.
CANDIDATES = 20
LONG_WEIGHTS, FEW_CANDIDATES = 1024, 10
SMOOTH_WEIGHTS = 256
MOST_REPEATS = 16
REFITS = 2
# Of the power of two below a tensor's largest step: smaller ones leave half precision's normal range.
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
    ``<w, q> / <q, q>`` at fixed codes follows, for other p the step of p = 2 is tried too.

    Parameters
    ----------
    rows : Tensor, shape (rows, weights)
        Real weights; a row of zeros gets the step 1.
    p : float
        Exponent of ``pnorm``, at least 1.

    Returns
    -------
    Tensor, shape (rows,)
        Positive steps; a power of two times the rows gives exactly that power times the steps.

    Raises
    ------
    InputError
        An exponent below 1 or not finite.

    References
    ----------
    p-norm steps: Nahshan et al., "Loss aware post-training quantization", 2019, section 3.
    """
    check_exponent(p)
    rows, scale = unit_rows(rows)
    low, high = rows.amin(1), rows.amax(1)
    cover = torch.maximum(high / max(grid.qmax, 1), -low / max(grid.qmin, 1))
    zero = cover <= 0
    cover = torch.where(zero, 1.0, cover)
    if method is StepSearch.MIN_MAX:
        return cover * scale
    exponent = 2.0 if method is StepSearch.MSE else p
    rms = rows.square().mean(1).sqrt_()
    # The optimal spacing of a Gaussian is close to 4 sigma / levels^0.87; half of it is below any optimum.
    first = torch.minimum(rms * (2.0 / grid.spacing / grid.levels**0.87), cover)
    first = torch.where(zero, 1.0, first.clamp_min(torch.finfo(rows.dtype).tiny))
    last = cover * 1.05
    once = FEW_CANDIDATES if rows.shape[1] > LONG_WEIGHTS else CANDIDATES
    count = once * min(MOST_REPEATS, 1 + SMOOTH_WEIGHTS // rows.shape[1])
    best = _best_of(rows, grid, first, last, count, exponent)
    neighbour = (last / first) ** (1.0 / (count - 1))
    best = _best_of(rows, grid, best / neighbour, best * neighbour, once, exponent)
    if exponent == 2.0:
        best = _refit(rows, grid, best)
    else:
        # The refit hits a lone outlier exactly, which a p-norm needs even more and a scan misses.
        square = search_steps(rows, grid)
        better = row_error(rows, grid, square, exponent) < row_error(rows, grid, best, exponent)
        best = torch.where(better, square, best)
    return torch.where(zero, 1.0, best) * scale


def check_exponent(p: float) -> None:
    """Refuse an exponent of which ``|w|^p`` is no norm."""
    if not 1 <= p < math.inf:
        raise InputError(f"the p-norm has p = {p}; p is a number of at least 1, such as 2.4")


def unit_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows divided by a power of two of their own, so that their largest weight is in [0.5, 1).

    Squares of 1e-30 and 1e30 leave single precision; those of unit rows do not. A power of two changes no
    significant bit, so the fit of a row does not depend on its scale. Rows of zeros keep the scale 1.

    Returns
    -------
    rows : Tensor, shape (rows, weights)
    scale : Tensor, shape (rows,)
    """
    _, exponent = torch.frexp(rows.abs().amax(1))
    # Kept within the normal numbers: neither 2^e nor 2^-e may overflow or vanish.
    scale = torch.ldexp(torch.ones_like(rows[:, 0]), exponent.clamp(-126, 126))
    return rows / scale[:, None], scale


def row_error(rows: Tensor, grid: Grid, steps: Tensor, exponent: float = 2.0) -> Tensor:
    """``sum |w - step * code(w)|^exponent`` of every row, shape (rows,)."""
    step = steps[:, None]
    error = grid.codes(rows, step).mul_(step).sub_(rows)
    return error.square_().sum(1) if exponent == 2.0 else error.abs_().pow_(exponent).sum(1)


def storable_steps(steps: Tensor) -> Tensor:
    """Steps rounded to the 11 significant bits of a half-precision number, each on its own."""
    significand, exponent = torch.frexp(steps)
    return torch.ldexp((significand * HALF_SIGNIFICAND).round_() / HALF_SIGNIFICAND, exponent)


def steps_to_half(steps: Tensor) -> tuple[Tensor, int]:
    """Half-precision numbers and the exponent e with ``steps = half * 2^e``.

    Exact for the steps of `QuantizedRows`, which have 11 significant bits and span at most 2^28; other
    steps are rounded. The exponent makes the precision independent of the scale of the weights.
    """
    exponent = int(math.log2(float(_power_of_two_below(steps)))) - 14
    # In double precision, where 2^-e exists for every e of a single-precision step.
    return (steps.double() * 2.0**-exponent).to(torch.float16), exponent


def steps_from_half(half: Tensor, exponent: int) -> Tensor:
    """The inverse of `steps_to_half`."""
    return (half.double() * 2.0**exponent).to(torch.float32)


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


def least_step(steps: Tensor) -> Tensor:
    """The least step that 16 bits hold beside the largest of `steps`, a scalar power of two."""
    return (_power_of_two_below(steps) * SMALLEST_RATIO).clamp_min(torch.finfo(torch.float32).tiny)


def _power_of_two_below(steps: Tensor) -> Tensor:
    """The greatest power of two that does not exceed the largest ``|step|``, a scalar."""
    largest = steps.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
    _, exponent = torch.frexp(largest)
    return torch.ldexp(torch.ones_like(largest), exponent - 1)
