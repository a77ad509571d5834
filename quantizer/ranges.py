"""Step and zero point of a value that is stored in low bits, from a sample of its numbers."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from .steps import check_exponent

__all__ = ["ActivationGrid", "RangeSearch", "RangeSettings", "candidate_ranges", "fit_range", "leans_on_few"]

CANDIDATES = 16
ROUNDS = 3
FARTHEST_CUT = (1e-4, 1e-3, 1e-2)
MASSIVE_SHARE = 0.3
# The outermost 1% behind a GELU have half of its squared size, and are rightly cut off.
MOST_CUT = 0.6
SCANNED = 6
LEAST_SHARE = 0.05
MOST_PERCENT = 100.0


class RangeSearch(enum.StrEnum):
    """What fixes the range of a value.

    ``minmax``: all numbers of the data. ``percentile``: all but a small share at either end. ``mse`` and
    ``pnorm``: the range of least (p-th power of the) error. ``loss``: that of ``mse``, or one that cuts off
    some at its farther end, if the network loses less by it.
    """

    LOSS = "loss"
    MIN_MAX = "minmax"
    PERCENTILE = "percentile"
    MSE = "mse"
    P_NORM = "pnorm"


@dataclass(frozen=True)
class RangeSettings:
    """How ranges are found.

    Parameters
    ----------
    search : RangeSearch
    percentile : float
        Share of the numbers inside the range in percent, above 50 up to 100, for ``percentile``.
    p : float
        Exponent for ``pnorm``, at least 1.

    Raises
    ------
    InputError
        A setting outside its range.
    """

    search: RangeSearch = RangeSearch.LOSS
    percentile: float = 99.99
    p: float = 2.0

    def __post_init__(self) -> None:
        check_exponent(self.p)
        if not MOST_PERCENT / 2 < self.percentile <= MOST_PERCENT:
            raise InputError(
                f"the percentile is {self.percentile:g}; it is above 50 and at most 100, such as 99.99"
            )

    def settings(self) -> dict[str, str | float]:
        """The fields as documents keep them."""
        return {"search": str(self.search), "percentile": self.percentile, "p": self.p}


@dataclass(frozen=True)
class ActivationGrid:
    """The numbers that a stored value can have: ``(code - zero_point) * step``, codes from 0 to `levels`.

    Attributes
    ----------
    step : float
        Above 0.
    zero_point : int
        The code of 0, from 0 to `levels`; 0 for values that are never negative.
    levels : int
        ``2^bits - 1``.
    """

    step: float
    zero_point: int
    levels: int

    @classmethod
    def over(cls, low: float, high: float, levels: int) -> ActivationGrid:
        """The grid from `low` to `high`, as near as the code of 0 allows; 0 is always in it."""
        low, high = min(low, 0.0), max(high, 0.0)
        # In single precision, as it is computed with.
        step = float(torch.tensor((high - low) / levels, dtype=torch.float32))
        if not step > torch.finfo(torch.float32).tiny:
            return cls(1.0, 0 if low == 0 else levels, levels)
        return cls(step, min(levels, round(-low / step)), levels)

    def quantize(self, x: Tensor) -> Tensor:
        """The nearest numbers of the grid."""
        step = torch.tensor(self.step, dtype=x.dtype)
        codes = ((x * step.reciprocal()).round() + self.zero_point).clamp_(0, self.levels)
        return (codes - self.zero_point) * step

    def error(self, x: Tensor, p: float, weights: Tensor | None = None) -> float:
        """Mean of ``|x - quantized x|^p``, where `weights` tells for how many numbers each of x stands."""
        difference = (self.quantize(x) - x).abs_()
        powers = difference.square_() if p == 2 else difference.pow_(p)
        if weights is None:
            return float(powers.mean(dtype=torch.float64))
        return float(torch.dot(powers.double(), weights.double()) / weights.sum(dtype=torch.float64))


def leans_on_few(numbers: Tensor, weights: Tensor) -> bool:
    """Whether the outermost 0.01% of a value's numbers have 30% or more of its squared size.

    Parameters
    ----------
    numbers, weights
        A sample, as `fit_range` has it.

    Notes
    -----
    Such are the massive activations of transformers: 91% behind one GELU of a ViT-tiny, at most 5% in all
    others that its layers read, and 2% in a ResNet-20. Without these few numbers the network is another one,
    so that no derivative tells what it loses when they are cut.
    """
    squares, order = numbers.double().square().sort(descending=True)
    counts = weights.double()[order]
    outermost = counts.cumsum(0) <= FARTHEST_CUT[0] * counts.sum()
    sizes = squares * counts
    return float(sizes[outermost].sum()) >= MASSIVE_SHARE * float(sizes.sum()) > 0


def candidate_ranges(
    numbers: Tensor,
    levels: int,
    *,
    weights: Tensor,
    nonnegative: bool,
    massive: bool,
    settings: RangeSettings | None = None,
) -> tuple[ActivationGrid, ...]:
    """Grids among which what the network loses decides, that of `fit_range` first; several for ``loss``.

    Parameters
    ----------
    numbers, levels, weights, nonnegative, settings
        As `fit_range` has them.
    massive : bool
        Whether the value `leans_on_few` numbers.

    Notes
    -----
    Squared error says little where a few numbers are far larger than all others: steps that reach them
    leave nothing of what is small below zero, as behind a GELU, which shifts every sum alike. The other
    grids keep the nearer end and cut off more and more of the farther one, though no 60% of the value's
    squared size; where it leans on few numbers, in equal ratios from where its others end up to its last.
    """
    settings = settings or RangeSettings()
    found = [fit_range(numbers, levels, weights=weights, nonnegative=nonnegative, settings=settings)]
    if settings.search is RangeSearch.LOSS:
        low, high = 0.0 if nonnegative else float(numbers.min()), float(numbers.max())
        cuts = [_inner(numbers, weights, share) for share in FARTHEST_CUT]
        if massive:
            least, most = cuts[0]
            shares = [index / SCANNED for index in range(SCANNED + 1)]
            cuts = [(_between(least, low, share), _between(most, high, share)) for share in shares]
        sizes = numbers.double().square() * weights
        for least, most in cuts:
            ends = (low, most) if high >= -low else (least, high)
            beyond = (numbers < ends[0]) | (numbers > ends[1])
            small = massive or float(sizes[beyond].sum()) < MOST_CUT * float(sizes.sum())
            # Where all but fewer than are cut off is 0, nothing would be left.
            if small and (min(ends) < 0 or max(ends) > 0):
                found.append(ActivationGrid.over(*ends, levels))
    return tuple(dict.fromkeys(found))


def fit_range(
    numbers: Tensor,
    levels: int,
    *,
    weights: Tensor | None = None,
    nonnegative: bool,
    settings: RangeSettings | None = None,
) -> ActivationGrid:
    """The grid of a value.

    Parameters
    ----------
    numbers : Tensor, shape (n,), float32
        A sample, with the least and the greatest of all numbers in it.
    levels : int
        The greatest code.
    weights : Tensor, shape (n,), float32, optional
        For how many numbers each of the sample stands. Default: all alike.
    nonnegative : bool
        Whether the value is never negative: its zero point is 0, and all codes are for what is above.
    settings : RangeSettings, optional
        ``loss`` is ``mse`` here, see `candidate_ranges`.

    Notes
    -----
    The search moves both ends of the range, as shares of the extremes: first together, then one and the
    other in turns, from coarse to fine.
    """
    settings = settings or RangeSettings()
    low = 0.0 if nonnegative else min(float(numbers.min()), 0.0)
    high = max(float(numbers.max()), 0.0)
    whole = ActivationGrid.over(low, high, levels)
    if settings.search is RangeSearch.MIN_MAX or low == high:
        return whole
    if settings.search is RangeSearch.PERCENTILE:
        cut_low, cut_high = _inner(numbers, weights, 1 - settings.percentile / MOST_PERCENT)
        cut_low, cut_high = min(max(low, cut_low), 0.0), max(min(high, cut_high), 0.0)
        # Where fewer numbers than are cut off differ from 0, nothing but 0 would be left.
        return whole if cut_low == cut_high else ActivationGrid.over(cut_low, cut_high, levels)
    p = settings.p if settings.search is RangeSearch.P_NORM else 2.0
    best, least = whole, whole.error(numbers, p, weights)
    shares = [1.0, 1.0]
    # Both ends, then each alone; what moves nothing is left out.
    moves = [(0, 1)] if low == 0 or high == 0 else [(0, 1), (0,), (1,)]
    width = 1 - LEAST_SHARE
    for _ in range(ROUNDS):
        for ends_moved in moves:
            start = list(shares)
            for index in range(CANDIDATES + 1):
                factor = 1 + width * (2 * index / CANDIDATES - 1)
                tried = list(start)
                for end in ends_moved:
                    tried[end] = min(1.0, max(LEAST_SHARE / levels, start[end] * factor))
                grid = ActivationGrid.over(low * tried[0], high * tried[1], levels)
                error = grid.error(numbers, p, weights)
                if error < least:
                    best, least, shares = grid, error, tried
        width *= 2 / CANDIDATES
    return best


def _inner(numbers: Tensor, weights: Tensor | None, cut: float) -> tuple[float, float]:
    """The least and the greatest number once a share of all is cut off at either end."""
    ordered, order = numbers.sort()
    counts = torch.ones_like(ordered) if weights is None else weights[order]
    below = counts.cumsum(0, dtype=torch.float64)
    cuts = below[-1] * torch.tensor([cut, 1 - cut], dtype=torch.float64)
    first, last = torch.searchsorted(below, cuts).clamp_(max=len(ordered) - 1).tolist()
    return float(ordered[first]), float(ordered[last])


def _between(inner: float, outer: float, share: float) -> float:
    """From `inner` to `outer` in equal ratios, or steps where they have not the same sign."""
    if inner * outer > 0:
        return inner * math.pow(outer / inner, share)
    return inner + (outer - inner) * share
