"""Partial choices over the units of a core, and how the best of them is read back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .core import Core

__all__ = ["States", "Trail", "extend", "undominated"]


class States(NamedTuple):
    """Partial choices, relative to the base; arrays (states,).

    Parameters
    ----------
    cost : int64 array
        Bits added.
    loss : float64 array
        Loss added.
    parent : int32 array
        Index of the partial choice that each extends.
    entry : int32 array
        Core entry that it adds; -1 where the unit stays at its base.
    """

    cost: NDArray[np.int64]
    loss: NDArray[np.float64]
    parent: NDArray[np.int32]
    entry: NDArray[np.int32]

    @staticmethod
    def base() -> States:
        """The one partial choice over no units."""
        return States(np.zeros(1, np.int64), np.zeros(1), np.zeros(1, np.int32), np.full(1, -1, np.int32))

    def take(self, index: NDArray[np.intp]) -> States:
        """The partial choices at these indices."""
        return States(self.cost[index], self.loss[index], self.parent[index], self.entry[index])

    @staticmethod
    def join(parts: Sequence[States]) -> States:
        """All parts, one after the other."""
        return States(
            np.concatenate([part.cost for part in parts]),
            np.concatenate([part.loss for part in parts]),
            np.concatenate([part.parent for part in parts]),
            np.concatenate([part.entry for part in parts]),
        )


def extend(core: Core, states: States, entries: NDArray[np.intp]) -> Iterable[States]:
    """Let a unit stay at its base or take one of its entries: one part for each, parents set."""
    parent = np.arange(len(states.cost), dtype=np.int32)
    yield States(states.cost, states.loss, parent, np.full(len(parent), -1, np.int32))
    for entry in entries.tolist():
        added = np.full(len(parent), entry, np.int32)
        yield States(
            states.cost + core.entries.cost[entry], states.loss + core.entries.loss[entry], parent, added
        )


def undominated(parts: Sequence[States]) -> States:
    """Those than which no other costs no more and loses no more, rising in cost and falling in loss.

    Parameters
    ----------
    parts : sequence of States
        Each rising in cost, which the sort makes use of.
    """
    joined = States.join(parts)
    joined = joined.take(np.argsort(joined.cost, kind="stable"))
    better = np.ones(len(joined.loss), np.bool_)
    better[1:] = joined.loss[1:] < np.minimum.accumulate(joined.loss)[:-1]
    return joined.take(np.flatnonzero(better))


class Trail:
    """The parents and entries of all partial choices so far, from which a whole one is read back."""

    def __init__(self) -> None:
        self._records: list[tuple[NDArray[np.int32], NDArray[np.int32]]] = []
        self.remembered = 0

    def append(self, states: States) -> None:
        """Remember the partial choices after one more unit."""
        self._records.append((states.parent, states.entry))
        self.remembered += len(states.parent)

    def entries(self, index: int) -> list[int]:
        """Core entries of one of the partial choices that were appended last."""
        found: list[int] = []
        for parents, entries in reversed(self._records):
            found.append(int(entries[index]))
            index = int(parents[index])
        return [entry for entry in found if entry >= 0]
