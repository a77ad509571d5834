"""What the units to come must add at least: the linear relaxation of the rest of a core."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .core import ROUNDING, Core

__all__ = ["Rest", "Rests"]


class Line(NamedTuple):
    """A convex, piecewise linear function of bits, 0 at 0.

    Parameters
    ----------
    bits : int64 array (steps + 1,)
        Where each piece begins.
    excess : float64 array (steps + 1,)
        Value there.
    rate : float64 array (steps + 1,)
        Excess per bit along each piece; the last one goes on for ever, and may be infinite.
    """

    bits: NDArray[np.int64]
    excess: NDArray[np.float64]
    rate: NDArray[np.float64]

    def at(self, bits: NDArray[np.int64]) -> NDArray[np.float64]:
        """Lower bound of the value, within the rounding of a sum of positive terms."""
        piece = np.maximum(np.searchsorted(self.bits, bits, side="left") - 1, 0)
        # The difference is taken in integers, so that none is lost where sums of costs exceed 2^53.
        value: NDArray[np.float64] = self.excess[piece] + self.rate[piece] * (bits - self.bits[piece])
        return value * (1.0 - ROUNDING * len(self.bits))


class Rest(NamedTuple):
    """Least excess that the units from some stage on add, as a function of the slack that they meet.

    Parameters
    ----------
    fill : Line
        With slack: they take what costs bits, and pay the price for every bit that is left over.
    free : Line
        Over the budget: they give bits back; what they cannot give back has an infinite excess.
    """

    fill: Line
    free: Line

    def least_excess(self, slack: NDArray[np.int64]) -> NDArray[np.float64]:
        """Lower bound of the excess at each slack in bits, which is negative over the budget."""
        excess = np.empty(len(slack))
        over = slack < 0
        excess[~over] = self.fill.at(slack[~over])
        excess[over] = self.free.at(-slack[over])
        return excess


@dataclass(frozen=True, eq=False)
class _Steps:
    """Hull steps of all units in one direction, least excess per bit first; arrays (steps,)."""

    stage: NDArray[np.intp]
    bits: NDArray[np.int64]
    excess: NDArray[np.float64]
    rate: NDArray[np.float64]

    def line_from(self, stage: int, last_rate: float) -> Line:
        rest = self.stage >= stage
        return Line(
            np.append(np.int64(0), np.cumsum(self.bits[rest])),
            np.append(0.0, np.cumsum(self.excess[rest])),
            np.append(self.rate[rest], last_rate),
        )


class Rests:
    """The rests of a core, by the stage (position of a unit in the core) from which they are counted.

    Attributes
    ----------
    entry_excess : float64 array (core units + 1,)
        Least excess of any entry from each stage on; infinite after the last.
    """

    def __init__(self, core: Core) -> None:
        starts = core.first[:-1]
        least = np.minimum.reduceat(core.entries.excess, starts) if len(starts) else np.zeros(0)
        self.entry_excess = np.minimum.accumulate(np.append(least, np.inf)[::-1])[::-1]
        self._price = core.price
        self._fill = _hull_steps(core, core.entries.cost, core.price)
        self._free = _hull_steps(core, -core.entries.cost, np.inf)

    def from_stage(self, stage: int) -> Rest:
        """The units of the core from `stage` on."""
        return Rest(self._fill.line_from(stage, self._price), self._free.line_from(stage, np.inf))


def _hull_steps(core: Core, bits: NDArray[np.int64], most_rate: float) -> _Steps:
    """Walk the hulls of (bits, excess) of all units together, from (0, 0), while a rate is below `most_rate`.

    A unit's rates rise along its hull, so the steps of all units in the order of their rates keep each unit's
    own order.
    """
    starts = core.first[:-1]
    stage = np.repeat(np.arange(len(starts)), np.diff(core.first))
    found = [_Steps(stage[:0], bits[:0], core.entries.excess[:0], core.entries.excess[:0])]
    at_bits, at_excess = np.zeros(len(starts), np.int64), np.zeros(len(starts))
    at_rate = np.zeros(len(starts))
    while len(starts):
        ahead = bits - at_bits[stage]
        rate = np.full(len(bits), np.inf)
        np.divide(core.entries.excess - at_excess[stage], ahead, out=rate, where=ahead > 0)
        least = np.minimum.reduceat(rate, starts)
        chosen = np.flatnonzero((rate == least[stage]) & (rate < most_rate))
        # One of those that tie; of entries that follow each other at one stage, the first.
        chosen = chosen[np.append(True, stage[chosen][1:] != stage[chosen][:-1])[: len(chosen)]]
        if not len(chosen):
            break
        moved = stage[chosen]
        at_rate[moved] = np.maximum(at_rate[moved], rate[chosen])
        found.append(
            _Steps(moved, ahead[chosen], core.entries.excess[chosen] - at_excess[moved], at_rate[moved])
        )
        at_bits[moved], at_excess[moved] = bits[chosen], core.entries.excess[chosen]
    joined_rate = np.concatenate([steps.rate for steps in found])
    order = np.argsort(joined_rate, kind="stable")
    return _Steps(
        np.concatenate([steps.stage for steps in found])[order],
        np.concatenate([steps.bits for steps in found])[order],
        np.concatenate([steps.excess for steps in found])[order],
        joined_rate[order],
    )
