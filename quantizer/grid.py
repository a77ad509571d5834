"""The uniform grid of one low-bit tensor: a step and two integer limits."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Grid", "Rounding", "signed_grid"]


class Rounding(enum.StrEnum):
    """How a value between two grid points is rounded."""

    NEAREST = "nearest"
    FLOOR = "floor"


@dataclass(frozen=True)
class Grid:
    """Integer codes in ``[-qmin, qmax]`` and the way to round to them.

    The code of v is ``clip(round(v / step), -qmin, qmax)``, its reconstruction ``step * code``.
    """

    qmin: int
    qmax: int
    rounding: Rounding = Rounding.NEAREST

    def codes(self, values: Tensor, step: Tensor) -> Tensor:
        """Codes of `values`, as floating-point integers; `step` broadcasts against `values`."""
        ratio = values / step
        rounded = ratio.round_() if self.rounding is Rounding.NEAREST else ratio.floor_()
        # Limits as floats: those of a sum of many points exceed 64-bit integers.
        return rounded.clamp_(-float(self.qmin), float(self.qmax))


def signed_grid(bits: int, rounding: Rounding = Rounding.NEAREST) -> Grid:
    """The two's complement grid of `bits` bits: ``qmin = 2^(bits-1)``, ``qmax = 2^(bits-1) - 1``."""
    return Grid(2 ** (bits - 1), 2 ** (bits - 1) - 1, rounding)
