"""Combinations of the options of several things that are chosen together, as far as they can be the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Columns", "efficient", "joined"]

ROWS_AT_ONCE = 512


@dataclass(frozen=True, eq=False)
class Columns:
    """Combinations with what each loses and costs.

    Attributes
    ----------
    loss : float64 array (n,)
    costs : int64 array (quantities, n)
    choice : int array (things, n)
        Option of each of the things that are chosen together.
    """

    loss: NDArray[np.float64]
    costs: NDArray[np.int64]
    choice: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.loss)

    def take(self, index: NDArray[np.intp]) -> Columns:
        """Some of the combinations."""
        return Columns(self.loss[index], self.costs[:, index], self.choice[:, index])


def efficient(columns: Columns) -> Columns:
    """The combinations that no other one is as good as in everything and better in something.

    One of several that are equal in everything is kept, the first. In ascending order of loss.
    """
    order = np.lexsort((*columns.costs[::-1], columns.loss))
    sorted_ = columns.take(order)
    kept = np.ones(len(columns), np.bool_)
    # Whoever is better than another stands before it.
    for begin in range(0, len(columns), ROWS_AT_ONCE):
        rows = np.arange(begin, min(begin + ROWS_AT_ONCE, len(columns)))
        before = np.flatnonzero(kept[: rows[-1] + 1])
        costs = sorted_.costs
        covered = (costs[:, before, None] <= costs[:, None, rows]).all(axis=0)
        covered &= before[:, None] < rows[None]
        kept[rows] = ~covered.any(axis=0)
    return sorted_.take(np.flatnonzero(kept))


def joined(parts: Sequence[Columns], quantities: int) -> Columns:
    """Every combination of one from each part, losses and costs added up, as far as it is efficient."""
    total = Columns(np.zeros(1), np.zeros((quantities, 1), np.int64), np.zeros((0, 1), np.intp))
    for part in parts:
        left = np.repeat(np.arange(len(total)), len(part))
        right = np.tile(np.arange(len(part)), len(total))
        total = efficient(
            Columns(
                total.loss[left] + part.loss[right],
                total.costs[:, left] + part.costs[:, right],
                np.concatenate([total.choice[:, left], part.choice[:, right]]),
            )
        )
    return total
