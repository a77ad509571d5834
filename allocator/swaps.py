"""Local search on the joint loss: changes of one unit, and of two at a time, within the budgets."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from .joint import JointProblem

__all__ = ["swap_down"]

CANDIDATES = 400
MOST_SWAPS = 1000


def swap_down(
    joint: JointProblem,
    start: NDArray[np.intp],
    prices: NDArray[np.float64],
    *,
    deadline: float | None = None,
) -> NDArray[np.intp]:
    """Change one or two units while the joint loss falls; the budgets are kept.

    The 400 changes of least ``loss change + prices . cost change`` are considered, alone and in all pairs,
    with the exact change of the joint loss.

    Parameters
    ----------
    joint : JointProblem
        The problem.
    start : int array (units,)
        A choice within the budgets; what is returned is never worse.
    prices : float64 array (budgets,)
        Loss per unit of each budget.
    deadline : float, optional
        Time on `time.monotonic` after which no further change is tried.
    """
    choice = start.copy()
    costs, budgets = joint.linear.costs, np.array(joint.linear.budgets, np.int64)
    units = np.arange(joint.linear.units)
    for _ in range(MOST_SWAPS):
        if deadline is not None and time.monotonic() >= deadline:
            break
        residual = joint.residual(choice)
        slope = joint.gradient(residual)
        change = slope - slope[units, choice][:, None] + joint.distance(choice)
        extra = costs - costs[:, units, choice][:, :, None]
        priced = change + np.tensordot(prices, extra, axes=1)
        if joint.linear.allowed is not None:
            priced = np.where(joint.linear.allowed, priced, np.inf)
        priced[units, choice] = np.inf
        best = np.argsort(priced, axis=None)[:CANDIDATES]
        best = best[np.isfinite(priced.ravel()[best])]
        unit, option = np.unravel_index(best, priced.shape)
        room = budgets - costs[:, units, choice].sum(axis=1)
        moved = _best_change(joint, choice, unit, option, change[unit, option], extra[:, unit, option], room)
        if moved is None or not joint.loss_of(moved) < joint.loss_of(choice):
            break
        choice = moved
    return choice


def _best_change(
    joint: JointProblem,
    choice: NDArray[np.intp],
    unit: NDArray[np.intp],
    option: NDArray[np.intp],
    change: NDArray[np.float64],
    extra: NDArray[np.int64],
    room: NDArray[np.int64],
) -> NDArray[np.intp] | None:
    """The choice after the best single or double change that the room allows; None where none helps."""
    if not len(unit):
        return None
    steps = joint.factors[unit, option] - joint.factors[unit, choice[unit]]
    pairs = change[:, None] + change[None, :] + (steps @ steps.T).astype(np.float64)
    fits = (extra[:, :, None] + extra[:, None, :] <= room[:, None, None]).all(axis=0)
    pairs[~fits | (unit[:, None] == unit[None, :])] = np.inf
    # On the diagonal stand the changes of one unit alone.
    np.fill_diagonal(pairs, np.where((extra <= room[:, None]).all(axis=0), change, np.inf))
    first, second = np.unravel_index(int(pairs.argmin()), pairs.shape)
    if not pairs[first, second] < 0:
        return None
    moved = choice.copy()
    moved[unit[first]], moved[unit[second]] = option[first], option[second]
    return moved
