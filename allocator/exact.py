"""The proven optimum of a core, by a dynamic programme over partial choices.

Units enter one after the other, those that matter most first; units that have not entered stand at their
base, so every partial choice is also a whole one. A partial choice is dropped when another one costs no more
and loses no more, or when its excess, with the least that the units to come must add, reaches that of the
best choice found. The search ends when no unit to come has an option below that, most often after a few units
(in the line of Pisinger, "A minimal algorithm for the multiple-choice knapsack problem", European Journal of
Operational Research 83, 1995). Where there are too many partial choices, those over the last few units are
listed from the other end and the two lists meet; where that is out of reach too, the list is thinned, and
what is proven is the bound of what was thinned out.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .core import ROUNDING, Core
from .relaxation import Rests
from .solution import Status
from .states import States, Trail, extend, undominated

__all__ = ["SearchResult", "search_core"]

MAX_STATES = 2**18
"""Partial choices kept after each unit while the search may still end with a proof."""
THINNED_STATES = 2**12
"""Partial choices kept once it cannot, and good choices are all that is left to find."""
MAX_TAIL_BITS = 18
"""All choices over the last units are listed when there are at most 2 to this power."""
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


def search_core(core: Core, *, deadline: float | None = None) -> SearchResult:
    """Find the choice of least loss within the budget, or prove that the known one is it.

    Parameters
    ----------
    core : Core
        From `reduce_problem`.
    deadline : float, optional
        Time on `time.monotonic` at which to stop with what is found.
    """
    search = _Search(core)
    for stage in range(len(core.first) - 1):
        if search.settled(stage):
            break
        if search.trail.remembered > MAX_RECORDS:
            return search.give_up(stage, Status.STATE_LIMIT)
        if deadline is not None and time.monotonic() > deadline:
            return search.give_up(stage, Status.TIME_LIMIT)
        search.enter(stage)
        if len(search.states.cost) > search.room:
            if search.tail_bits(stage + 1) <= MAX_TAIL_BITS:
                search.meet_tail(stage + 1)
                break
            search.thin(stage + 1)
        search.trail.append(search.states)
    return search.result(Status.STATE_LIMIT)


class _Search:
    """Partial choices over the units entered so far, and the best whole choice.

    Invariant, up to `rounding`: every choice within the budget has an excess of at least `best` or of at
    least `given_up`, or extends one of `states`, whose parents are the last partial choices on `trail`.
    """

    def __init__(self, core: Core) -> None:
        self.core = core
        self.states = States.base()
        self.trail = Trail()
        self.best = core.known_excess
        self.best_entries: list[int] | None = None
        self.given_up = np.inf
        self._sums, self._largest = 8, 0.0
        self._rests = Rests(core)

    @property
    def rounding(self) -> float:
        """Greatest error of any excess: a rounding per unit entered, of the largest sum seen, and 8 more."""
        return self.core.rounding + ROUNDING * self._sums * self._largest

    def settled(self, stage: int) -> bool:
        """Whether no choice that changes units from `stage` on can be better than the best."""
        return not len(self.states.cost) or self.best <= max(self._rests.entry_excess[stage], self.rounding)

    @property
    def room(self) -> int:
        """Most partial choices to keep."""
        return MAX_STATES if self.given_up >= self.best else THINNED_STATES

    def tail_bits(self, stage: int) -> float:
        """Logarithm to base 2 of the number of choices over the units from `stage` on."""
        return float(np.log2(np.diff(self.core.first[stage:]) + 1.0).sum())

    def enter(self, stage: int) -> None:
        """Extend the partial choices by a unit and keep those that may lead to a better choice."""
        core = self.core
        entries = np.arange(core.first[stage], core.first[stage + 1])
        entries = entries[core.entries.excess[entries] < self.best]
        self._note_sums(entries)
        rest = self._rests.from_stage(stage + 1)
        kept: list[States] = []
        for part in extend(core, self.states, entries):
            excess = part.loss + core.price * part.cost + rest.least_excess(core.slack - part.cost)
            kept.append(part.take(np.flatnonzero(excess < self.best)))
        self.states = undominated(kept)
        # Loss falls with cost, so the last one within the budget is the best.
        within = int(np.searchsorted(self.states.cost, core.slack, side="right")) - 1
        if within >= 0 and self._offer(float(self.states.loss[within])):
            self.best_entries = self._entries(within)

    def meet_tail(self, stage: int) -> None:
        """List all choices over the units from `stage` on and join each partial choice with its best one."""
        core = self.core
        tail, trail = States.base(), Trail()
        for unit in range(stage, len(core.first) - 1):
            entries = np.arange(core.first[unit], core.first[unit + 1])
            self._note_sums(entries)
            tail = undominated(list(extend(core, tail, entries)))
            trail.append(tail)
        partner = np.searchsorted(tail.cost, core.slack - self.states.cost, side="right") - 1
        loss = np.where(partner >= 0, self.states.loss + tail.loss[partner], np.inf)
        joined = int(loss.argmin())
        if self._offer(float(loss[joined])):
            self.best_entries = self._entries(joined) + trail.entries(int(partner[joined]))

    def thin(self, stage: int) -> None:
        """Keep the most promising of each run of neighbours in cost, and the least bound of the others."""
        bound = self._bounds(stage)
        run = -(-len(bound) // self.room)
        padded = np.append(bound, np.full(-len(bound) % run, np.inf)).reshape(-1, run)
        keep = np.zeros(padded.shape, np.bool_)
        keep[np.arange(len(padded)), padded.argmin(axis=1)] = True
        kept = keep.reshape(-1)[: len(bound)]
        self.given_up = min(self.given_up, float(bound[~kept].min()))
        self.states = self.states.take(np.flatnonzero(kept))

    def give_up(self, stage: int, reason: Status) -> SearchResult:
        """Stop before `stage` with the best choice found."""
        self.given_up = min(self.given_up, float(self._bounds(stage).min()))
        return self.result(reason)

    def result(self, reason: Status) -> SearchResult:
        """The best choice; `reason` says why the search is not complete, where it is not."""
        # Twice the rounding: of the choice kept, and of a better one that was wrongly dropped.
        gap = max(self.best - max(self.given_up, 0.0), 0.0) + 2 * self.rounding
        status = Status.OPTIMAL if self.given_up >= self.best else reason
        if self.best_entries is None:
            return SearchResult(None, gap, status)
        choice = self.core.base.copy()
        choice[self.core.entries.unit[self.best_entries]] = self.core.entries.option[self.best_entries]
        return SearchResult(choice, gap, status)

    def _bounds(self, stage: int) -> NDArray[np.float64]:
        """Least excess of any choice that extends each partial choice by units from `stage` on."""
        states, rest = self.states, self._rests.from_stage(stage)
        bound: NDArray[np.float64] = states.loss + self.core.price * states.cost
        return bound + rest.least_excess(self.core.slack - states.cost)

    def _offer(self, loss: float) -> bool:
        excess = loss + self.core.price * self.core.slack
        if excess >= self.best:
            return False
        self.best = excess
        return True

    def _entries(self, index: int) -> list[int]:
        entry = int(self.states.entry[index])
        return self.trail.entries(int(self.states.parent[index])) + ([entry] if entry >= 0 else [])

    def _note_sums(self, entries: NDArray[np.intp]) -> None:
        """Account for one more sum along every partial choice, over the budget too."""
        core = self.core
        cost = np.abs(self.states.cost).max() + np.abs(core.entries.cost[entries]).max(initial=0)
        loss = np.abs(self.states.loss).max() + np.abs(core.entries.loss[entries]).max(initial=0.0)
        self._sums += 1
        self._largest = max(self._largest, float(loss + core.price * (cost + abs(core.slack))))
