"""The few options that can still matter: everything else is ruled out by its price.

At a price of ``p`` loss per bit let unit u's *base* be its option of least ``loss + p * cost``. An option's
excess is what it adds to that least value, never negative. For every choice within the budget

    loss(choice) - bound(p) = sum_u excess[u, o_u] + p * (budget - cost(choice)),

where ``bound(p) = sum_u min_o (loss + p * cost) - p * budget`` bounds every choice from below. Call the right
side the excess of the choice. The best choice is the one of least excess, and an option whose own excess is
at least that of a known choice cannot be part of a better one. What remains is the core (Balas and Zemel,
"An algorithm for large zero-one knapsack problems", Operations Research 28, 1980).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .hull import chunks
from .problem import Problem

__all__ = ["Core", "Entries", "reduce_problem"]

ROUNDING = 4 * float(np.finfo(np.float64).eps)
"""Error of an excess relative to |loss change| + price * |cost change|: four roundings, with a margin."""


class Entries(NamedTuple):
    """Options other than the base that may be part of a better choice; arrays (entries,).

    Parameters
    ----------
    unit, option : int array
        Which option of which unit.
    cost : int64 array
        Bits that the option adds to the base.
    loss : float64 array
        Loss that the option adds to the base.
    excess : float64 array
        Lower bound of the option's excess, rounding allowed for, at least 0.
    """

    unit: NDArray[np.intp]
    option: NDArray[np.intp]
    cost: NDArray[np.int64]
    loss: NDArray[np.float64]
    excess: NDArray[np.float64]

    def take(self, index: NDArray[np.intp]) -> Entries:
        """The entries at these indices, in their order."""
        return Entries(
            self.unit[index], self.option[index], self.cost[index], self.loss[index], self.excess[index]
        )

    @staticmethod
    def join(parts: Sequence[Entries]) -> Entries:
        """The entries of all parts, one after the other."""
        return Entries(
            np.concatenate([part.unit for part in parts]),
            np.concatenate([part.option for part in parts]),
            np.concatenate([part.cost for part in parts]),
            np.concatenate([part.loss for part in parts]),
            np.concatenate([part.excess for part in parts]),
        )


@dataclass(frozen=True, eq=False)
class Core:
    """What is left of a problem at a price, around its base choice.

    Parameters
    ----------
    base : int array (units,)
        Base option of every unit of the problem.
    price : float
        Loss per bit.
    slack : int
        Budget minus the cost of the base, in bits; negative where the base is over the budget.
    known_excess : float
        Excess of the known choice.
    rounding : float
        Greatest error of `known_excess` and of the bound from float64 rounding.
    entries : Entries
        Grouped by unit, the units in the order in which they matter: least excess per bit moved first.
    first : int array (core units + 1,)
        Entries of the k-th unit of the core are ``first[k]:first[k + 1]``.
    """

    base: NDArray[np.intp]
    price: float
    slack: int
    known_excess: float
    rounding: float
    entries: Entries
    first: NDArray[np.intp]


def reduce_problem(
    problem: Problem, price: float, known: NDArray[np.intp], near: NDArray[np.intp], budget: int
) -> Core:
    """Reduce a problem to its core, given a choice within the budget.

    Parameters
    ----------
    problem : Problem
        The problem.
    price : float
        Loss per bit, at least 0; any value is valid, the shadow price gives the smallest core.
    known : int array (units,)
        A choice within the budget.
    near : int array (units,)
        Expected base: kept for the units where it is of least value.
    budget : int
        Limit in bits, at most the greatest total cost.
    """
    base = near.copy()
    for part in chunks(problem.units):
        value = _changes(problem, part, near, price).value
        base[part] = np.where(value.min(axis=1) < 0, value.argmin(axis=1), near[part])
    slack = budget - int(problem.cost_of(base).sum())
    changed = np.flatnonzero(known != base)
    moved = problem.loss[changed, known[changed]] - problem.loss[changed, base[changed]]
    known_excess = max(math.fsum(moved) + price * slack, 0.0)
    magnitude = math.fsum(np.abs(moved)) + price * abs(slack)
    entries, tie_rounding = _find_entries(problem, base, price, known_excess)
    entries, first = _in_order(entries)
    rounding = ROUNDING * magnitude + tie_rounding
    return Core(base, price, slack, known_excess, rounding, entries, first)


class _Changes(NamedTuple):
    """Changes from a base in a chunk of units: bits, loss, ``loss + price * bits``, and its rounding."""

    cost: NDArray[np.int64]
    loss: NDArray[np.float64]
    value: NDArray[np.float64]
    rounding: NDArray[np.float64]


def _changes(problem: Problem, part: slice, base: NDArray[np.intp], price: float) -> _Changes:
    here, at = np.arange(part.stop - part.start), base[part]
    cost = problem.cost[part] - problem.cost[part][here, at][:, None]
    loss = problem.loss[part] - problem.loss[part][here, at][:, None]
    priced = price * cost
    value = loss + priced
    rounding = ROUNDING * (np.abs(loss) + np.abs(priced))
    if problem.allowed is not None:
        value = np.where(problem.allowed[part], value, np.inf)
        rounding = np.where(problem.allowed[part], rounding, 0.0)
    return _Changes(cost, loss, value, rounding)


def _find_entries(
    problem: Problem, base: NDArray[np.intp], price: float, known_excess: float
) -> tuple[Entries, float]:
    found: list[Entries] = []
    tie_rounding = 0.0
    for part in chunks(problem.units):
        change = _changes(problem, part, base, price)
        excess = change.value - change.rounding
        # Where an option ties with the base, the true bound may be lower by the rounding of the tie.
        tie_rounding -= float(np.minimum(excess, 0.0).min(axis=1).sum())
        excess = np.maximum(excess, 0.0)
        matters = excess < known_excess
        matters[np.arange(len(matters)), base[part]] = False
        unit, option = np.nonzero(matters)
        cost, loss = change.cost[unit, option], change.loss[unit, option]
        found.append(Entries(unit + part.start, option, cost, loss, excess[unit, option]))
    return Entries.join(found), tie_rounding


def _in_order(entries: Entries) -> tuple[Entries, NDArray[np.intp]]:
    """Reorder the units by their least excess per bit; also returns where each unit's entries begin."""
    if not len(entries.unit):
        return entries, np.zeros(1, np.intp)
    per_bit = entries.excess / np.maximum(np.abs(entries.cost), 1)
    unit, first, counts = np.unique(entries.unit, return_index=True, return_counts=True)
    by_rank = np.argsort(np.minimum.reduceat(per_bit, first), kind="stable")
    rank = np.empty(len(unit), np.intp)
    rank[by_rank] = np.arange(len(unit))
    order = np.argsort(np.repeat(rank, counts), kind="stable")
    starts = np.concatenate((np.zeros(1, np.intp), np.cumsum(counts[by_rank])))
    return entries.take(order), starts
