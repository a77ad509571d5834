"""The uniform grid of one low-bit tensor: a step and the integer codes that it is multiplied with."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Grid", "Rounding", "codes_of", "places_of", "signed_grid", "sum_grid"]


class Rounding(enum.StrEnum):
    """How a value between two grid points is rounded."""

    NEAREST = "nearest"
    FLOOR = "floor"


@dataclass(frozen=True)
class Grid:
    """Integer codes from ``-qmin`` to ``qmax`` and the way to round to them.

    The code of v is ``clip(round(v / step), -qmin, qmax)``, its reconstruction ``step * code``; of a grid
    with a spacing of 2 only every second integer from ``-qmin`` on is a code.
    """

    qmin: int
    qmax: int
    rounding: Rounding = Rounding.NEAREST
    spacing: int = 1

    @property
    def levels(self) -> int:
        """How many codes there are."""
        return (self.qmin + self.qmax) // self.spacing + 1

    def codes(self, values: Tensor, step: Tensor) -> Tensor:
        """Codes of `values`, as floating-point integers; `step` broadcasts against `values`."""
        ratio = values / step
        if self.spacing > 1:
            ratio.add_(self.qmin).div_(self.spacing)
        rounded = ratio.round_() if self.rounding is Rounding.NEAREST else ratio.floor_()
        if self.spacing > 1:
            rounded.mul_(self.spacing).sub_(self.qmin)
        # Limits as floats: those of a sum of many points exceed 64-bit integers.
        return rounded.clamp_(-float(self.qmin), float(self.qmax))


def codes_of(bits: int) -> range:
    """All codes of `bits` bits: -1 and 1 for one bit, else ``-2^(bits-1)`` to ``2^(bits-1) - 1``."""
    if bits == 1:
        return range(-1, 2, 2)
    return range(-(2 ** (bits - 1)), 2 ** (bits - 1))


def places_of(bits: int, points: int) -> list[int]:
    """What digits of `bits` bits are worth in positional notation: powers of ``2^bits``, largest first."""
    return [2 ** (bits * i) for i in reversed(range(points))]


def signed_grid(bits: int, rounding: Rounding = Rounding.NEAREST) -> Grid:
    """The grid of one point of `bits` bits, see `codes_of`."""
    return sum_grid(bits, (1,), rounding)


def sum_grid(bits: int, places: Sequence[int], rounding: Rounding = Rounding.NEAREST) -> Grid:
    """The sums of digits of `bits` bits, each times a place, where these are an even grid.

    Parameters
    ----------
    bits : int
    places : sequence of int
        As `places_of` gives them, each with any sign.
    rounding : Rounding
    """
    codes = codes_of(bits)
    ends = [(codes[0] * place, codes[-1] * place) for place in places]
    return Grid(-sum(map(min, ends)), sum(map(max, ends)), rounding, codes.step)
