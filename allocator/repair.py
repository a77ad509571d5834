"""A good choice within several budgets, from the mix that solves the relaxation.

Rounding the mix leaves a choice that is near the budgets on either side. Changes of single units bring it
within them and then spend what is left, guided by what their excess and their costs are worth at the prices;
changes of two units at once, in which one pays for the other, polish it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .dual import PricedChoice
from .multi import MultiProblem
from .residue import Relaxation, Residue

__all__ = ["repaired", "rounded", "spend", "swapped"]

MOST_SWAPS = 60
SWAP_POOL = 700
"""Changes that are tried in pairs: those of least excess."""


def rounded(relaxation: Relaxation) -> NDArray[np.intp]:
    """Every unit takes the option of the greatest share in the mix, (units,); perhaps over a budget."""
    residue, shares = relaxation.residue, relaxation.shares
    mixed = np.flatnonzero(shares > 0)
    order = mixed[np.argsort(shares[mixed], kind="stable")]
    base_share = np.ones(len(residue.priced.choice))
    np.subtract.at(base_share, residue.unit[mixed], shares[mixed])
    taken = order[shares[order] >= base_share[residue.unit[order]]]
    # Of a unit's entries the last one stays, which has the greatest share.
    return residue.choice(taken)


class _Changes(NamedTuple):
    """Changes of single units from a choice; arrays (changes,), costs (budgets, changes)."""

    unit: NDArray[np.intp]
    option: NDArray[np.intp]
    loss: NDArray[np.float64]
    costs: NDArray[np.int64]

    def take(self, index: NDArray[np.intp]) -> _Changes:
        return _Changes(self.unit[index], self.option[index], self.loss[index], self.costs[:, index])


def _changes(
    problem: MultiProblem, choice: NDArray[np.intp], unit: NDArray[np.intp], option: NDArray[np.intp]
) -> _Changes:
    other = option != choice[unit]
    unit, option = unit[other], option[other]
    here = choice[unit]
    return _Changes(
        unit,
        option,
        problem.loss[unit, option] - problem.loss[unit, here],
        problem.costs[:, unit, option] - problem.costs[:, unit, here],
    )


def _pool(problem: MultiProblem, residue: Residue | None) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Options to choose among: those near their base and the bases, or all that are allowed."""
    if residue is None:
        allowed = np.ones(problem.loss.shape, np.bool_) if problem.allowed is None else problem.allowed
        unit, option = np.nonzero(allowed)
        return unit, option
    units = np.unique(residue.unit)
    return (
        np.concatenate([residue.unit, units]),
        np.concatenate([residue.option, residue.priced.choice[units]]),
    )


def repaired(
    problem: MultiProblem, relaxation: Relaxation, choice: NDArray[np.intp]
) -> NDArray[np.intp] | None:
    """Bring a choice within all budgets by changes of single units; None where that fails.

    Each step takes the change that adds least priced loss for what it takes off the excess over the budgets,
    counted in parts of each budget's typical change.
    """
    for residue in (relaxation.residue, None):
        found = _repaired(problem, relaxation.priced, choice, _pool(problem, residue))
        if found is not None:
            return found
    return None


def _repaired(
    problem: MultiProblem,
    priced: PricedChoice,
    choice: NDArray[np.intp],
    pool: tuple[NDArray[np.intp], NDArray[np.intp]],
) -> NDArray[np.intp] | None:
    choice = choice.copy()
    budgets = problem.limits
    over = problem.costs_of(choice) - budgets
    for _ in range(len(pool[0])):
        if (over <= 0).all():
            return choice
        changes = _changes(problem, choice, *pool)
        if not len(changes.unit):
            return None
        size = np.maximum(np.abs(changes.costs).mean(axis=1), 1.0)
        before = float((np.maximum(over, 0) / size).sum())
        after = (np.maximum(over[:, None] + changes.costs, 0) / size[:, None]).sum(axis=0)
        helps = np.flatnonzero(after < before)
        if not len(helps):
            return None
        added = changes.loss[helps] + priced.prices @ changes.costs[:, helps]
        # What adds nothing is told apart by how much it helps.
        floor = np.abs(changes.loss[helps]).min() * 1e-6 + np.finfo(np.float64).tiny
        best = helps[np.argmin(np.maximum(added, floor) / (before - after[helps]))]
        choice[changes.unit[best]] = changes.option[best]
        over = over + changes.costs[:, best]
    return None


def spend(problem: MultiProblem, priced: PricedChoice, choice: NDArray[np.intp]) -> NDArray[np.intp]:
    """Spend what a choice leaves of the budgets: the change that saves most for its price, while one fits."""
    filled = choice.copy()
    slack = problem.limits - problem.costs_of(choice)
    changes = _changes(problem, choice, *_pool(problem, None))
    fits = (changes.loss < 0) & (changes.costs <= slack[:, None]).all(axis=0)
    changes = changes.take(np.flatnonzero(fits))
    while len(changes.unit):
        price = priced.prices @ np.maximum(changes.costs, 0)
        # A change that costs nothing comes first.
        best = int(np.argmin(changes.loss / np.maximum(price, np.finfo(np.float64).tiny * 1e10)))
        filled[changes.unit[best]] = changes.option[best]
        slack = slack - changes.costs[:, best]
        fits = (changes.costs <= slack[:, None]).all(axis=0) & (changes.unit != changes.unit[best])
        changes = changes.take(np.flatnonzero(fits))
    return filled


def swapped(problem: MultiProblem, residue: Residue, choice: NDArray[np.intp]) -> NDArray[np.intp]:
    """Change two units at once while that lowers the loss within the budgets; the options of least excess."""
    choice = choice.copy()
    budgets = problem.limits
    least = np.argsort(residue.excess, kind="stable")[:SWAP_POOL]
    units = np.unique(residue.unit[least])
    pool = (
        np.concatenate([residue.unit[least], units]),
        np.concatenate([residue.option[least], residue.priced.choice[units]]),
    )
    for _ in range(MOST_SWAPS):
        changes = _changes(problem, choice, *pool)
        if not len(changes.unit):
            break
        slack = budgets - problem.costs_of(choice)
        loss = changes.loss[:, None] + changes.loss[None]
        # The diagonal is a change alone; of one unit's options only one can be taken.
        fits = (loss < 0) & (changes.unit[:, None] != changes.unit[None])
        np.fill_diagonal(fits, False)
        for cost, left in zip(changes.costs, slack, strict=True):
            fits &= cost[:, None] + cost[None] <= left
        if not fits.any():
            break
        first, second = np.unravel_index(int(np.where(fits, loss, np.inf).argmin()), loss.shape)
        for index in (first, second):
            choice[changes.unit[index]] = changes.option[index]
    return choice
