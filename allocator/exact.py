"""The proven optimum of a core, by a dynamic programme over partial choices.

Units enter one after the other, those that matter most first; units that have not entered stand at their
base, so every partial choice is also a whole one. A partial choice is dropped when another one costs no more
and loses no more, or when its excess, with the least that the units to come must add to meet the budget or to
use it, reaches that of the best choice found. The search ends when no unit to come has an option below that,
most often after a few units (in the line of Pisinger, "A minimal algorithm for the multiple-choice knapsack
problem", European Journal of Operational Research 83, 1995).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .core import ROUNDING, Core
from .solution import Status

__all__ = ["SearchResult", "search_core"]

MAX_STATES = 2**16
"""Partial choices kept after each unit."""
MAX_RECORDS = 2**25
"""Partial choices remembered in all, at 8 bytes each, so that the best one can be read back."""


@dataclass(frozen=True, eq=False)
class SearchResult:
    """Best choice of a core and what the search proves.

    Parameters
    ----------
    choice : int array (units,), optional
        None where nothing better than the known choice was found.
    gap : float
        The best choice's loss is at most this above the least possible, rounding included.
    status : Status
        Whether the search was complete, and if not, what stopped it.
    """

    choice: NDArray[np.intp] | None
    gap: float
    status: Status


class _States(NamedTuple):
    """Partial choices, rising in cost and falling in loss, relative to the base; arrays (states,).

    `parent` is the partial choice that each extends, `entry` the core entry it adds (-1: the unit's base).
    """

    cost: NDArray[np.int64]
    loss: NDArray[np.float64]
    parent: NDArray[np.int32]
    entry: NDArray[np.int32]

    def take(self, index: NDArray[np.intp]) -> _States:
        return _States(self.cost[index], self.loss[index], self.parent[index], self.entry[index])

    @staticmethod
    def join(parts: Sequence[_States]) -> _States:
        return _States(
            np.concatenate([part.cost for part in parts]),
            np.concatenate([part.loss for part in parts]),
            np.concatenate([part.parent for part in parts]),
            np.concatenate([part.entry for part in parts]),
        )


class _Step(NamedTuple):
    """One extension: of which state after how many records, by which entry."""

    records: int
    parent: int
    entry: int


class _Prices(NamedTuple):
    """Least excess per bit that the units to come add, by unit from which they are counted.

    `fill` for a bit of slack that they use or leave, `free` for a bit over the budget that they give back;
    `excess` is the least excess of any of their entries. Arrays (core units + 1,).
    """

    fill: NDArray[np.float64]
    free: NDArray[np.float64]
    excess: NDArray[np.float64]


def search_core(core: Core, *, deadline: float | None = None) -> SearchResult:
    """Find the choice of least loss within the budget, or prove that the known one is it.

    Parameters
    ----------
    core : Core
        From `reduce_problem`.
    deadline : float, optional
        Time on `time.monotonic` at which to stop with what is found.

    Notes
    -----
    Rounding: the sums along a partial choice take one rounding per unit, so after k units its excess is
    wrong by at most (k + 8) roundings of the largest |loss| + price * |cost| seen. The reported gap holds
    this twice: for the choice kept, and for the best choice dropped.
    """
    prices = _prices_to_come(core)
    states = _States(np.zeros(1, np.int64), np.zeros(1), np.zeros(1, np.int32), np.full(1, -1, np.int32))
    best, best_step = core.known_excess, None
    dropped, stopped = np.inf, None
    records: list[tuple[NDArray[np.int32], NDArray[np.int32]]] = []
    remembered, largest, rounding = 0, 0.0, core.rounding
    for stage in range(len(core.first) - 1):
        if not len(states.cost) or best <= max(prices.excess[stage], rounding):
            break
        stopped = _out_of(remembered, deadline)
        if stopped is not None:
            dropped = min(dropped, float(_excess_bound(core, states, prices, stage).min()))
            break
        entries = np.arange(core.first[stage], core.first[stage + 1])
        entries = entries[core.entries.excess[entries] < best]
        if not len(entries):
            continue
        largest = max(largest, _magnitude(core, states, entries))
        states = _extend(core, states, prices, stage, entries, best)
        within = int(np.searchsorted(states.cost, core.slack, side="right")) - 1
        # Loss falls with cost, so the last one within the budget is the best.
        if within >= 0 and states.loss[within] + core.price * core.slack < best:
            best = float(states.loss[within]) + core.price * core.slack
            best_step = _Step(len(records), int(states.parent[within]), int(states.entry[within]))
        if len(states.cost) > MAX_STATES:
            states, least_dropped = _thin(states, _excess_bound(core, states, prices, stage + 1))
            dropped = min(dropped, least_dropped)
        records.append((states.parent, states.entry))
        remembered += len(states.cost)
        rounding = core.rounding + ROUNDING * (len(records) + 8) * largest
    gap = max(best - max(dropped, 0.0), 0.0) + 2 * rounding
    status = Status.OPTIMAL if dropped >= best else stopped or Status.STATE_LIMIT
    choice = None if best_step is None else _read_back(core, records, best_step)
    return SearchResult(choice, gap, status)


def _out_of(remembered: int, deadline: float | None) -> Status | None:
    if remembered > MAX_RECORDS:
        return Status.STATE_LIMIT
    if deadline is not None and time.monotonic() > deadline:
        return Status.TIME_LIMIT
    return None


def _prices_to_come(core: Core) -> _Prices:
    entries, starts = core.entries, core.first[:-1]

    def least_from(values: NDArray[np.float64]) -> NDArray[np.float64]:
        per_unit = np.append(np.minimum.reduceat(values, starts) if len(starts) else [], np.inf)
        return np.minimum.accumulate(per_unit[::-1])[::-1]

    per_bit = entries.excess / np.maximum(np.abs(entries.cost), 1)
    return _Prices(
        fill=np.minimum(least_from(np.where(entries.cost > 0, per_bit, np.inf)), core.price),
        free=least_from(np.where(entries.cost < 0, per_bit, np.inf)),
        excess=least_from(entries.excess),
    )


def _excess_bound(core: Core, states: _States, prices: _Prices, stage: int) -> NDArray[np.float64]:
    """Least excess of any choice that extends each state by units from `stage` on."""
    slack = core.slack - states.cost
    rate = np.where(slack >= 0, prices.fill[stage], prices.free[stage])
    bound: NDArray[np.float64] = states.loss + core.price * states.cost + np.abs(slack) * rate
    return bound


def _magnitude(core: Core, states: _States, entries: NDArray[np.intp]) -> float:
    cost = np.abs(states.cost).max() + np.abs(core.entries.cost[entries]).max()
    loss = np.abs(states.loss).max() + np.abs(core.entries.loss[entries]).max()
    return float(loss + core.price * (cost + abs(core.slack)))


def _extend(
    core: Core, states: _States, prices: _Prices, stage: int, entries: NDArray[np.intp], best: float
) -> _States:
    """Let a unit stay at its base or take an entry; keep what is not dominated and may beat `best`."""
    parts: list[_States] = []
    for entry in (-1, *entries.tolist()):
        cost = states.cost + (core.entries.cost[entry] if entry >= 0 else 0)
        loss = states.loss + (core.entries.loss[entry] if entry >= 0 else 0.0)
        moved = _States(cost, loss, states.parent, states.entry)
        kept = np.flatnonzero(_excess_bound(core, moved, prices, stage + 1) < best)
        parts.append(
            _States(cost[kept], loss[kept], kept.astype(np.int32), np.full(len(kept), entry, np.int32))
        )
    joined = _States.join(parts)
    # Every part is sorted already, which a stable sort makes use of.
    joined = joined.take(np.argsort(joined.cost, kind="stable"))
    undominated = np.ones(len(joined.loss), np.bool_)
    undominated[1:] = joined.loss[1:] < np.minimum.accumulate(joined.loss)[:-1]
    return joined.take(np.flatnonzero(undominated))


def _thin(states: _States, bound: NDArray[np.float64]) -> tuple[_States, float]:
    """Keep the best of each run of neighbours in cost; also returns the least bound of those dropped."""
    run = -(-len(bound) // MAX_STATES)
    padded = np.append(bound, np.full(-len(bound) % run, np.inf)).reshape(-1, run)
    keep = np.zeros(padded.shape, np.bool_)
    keep[np.arange(len(padded)), padded.argmin(axis=1)] = True
    kept = keep.reshape(-1)[: len(bound)]
    return states.take(np.flatnonzero(kept)), float(bound[~kept].min())


def _read_back(
    core: Core, records: list[tuple[NDArray[np.int32], NDArray[np.int32]]], last: _Step
) -> NDArray[np.intp]:
    choice = core.base.copy()
    parent, entry = last.parent, last.entry
    for index in range(last.records - 1, -2, -1):
        if entry >= 0:
            choice[core.entries.unit[entry]] = core.entries.option[entry]
        if index >= 0:
            parents, entries = records[index]
            parent, entry = int(parents[parent]), int(entries[parent])
    return choice
