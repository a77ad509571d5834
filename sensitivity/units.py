"""The units of a problem, collected layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..allocator import Problem

__all__ = ["UnitRows"]


class UnitRows:
    """Rows of a problem: every unit's name, losses, bits, further costs and allowed options.

    Parameters
    ----------
    quantities : int
        Number of further costs.
    """

    def __init__(self, quantities: int) -> None:
        self._names: list[str] = []
        self._loss: list[NDArray[np.float64]] = []
        self._bits: list[NDArray[np.int64]] = []
        self._further: list[list[NDArray[np.int64]]] = [[] for _ in range(quantities)]
        self._allowed: list[NDArray[np.bool_]] = []

    def add(
        self,
        names: Sequence[str],
        loss: NDArray[np.float64],
        bits: NDArray[np.int64],
        further: Sequence[NDArray[np.int64]],
        allowed: NDArray[np.bool_],
    ) -> int:
        """Add units of one layer, which all may take the same options; returns the index of the first.

        Parameters
        ----------
        loss, bits : array (new units, options)
        further : sequence of int64 array (new units, options)
        allowed : bool array (options,)
        """
        first = len(self._names)
        self._names.extend(names)
        self._loss.append(loss)
        self._bits.append(bits)
        for costs, cost in zip(self._further, further, strict=True):
            costs.append(cost)
        self._allowed.append(np.tile(allowed, (len(names), 1)))
        return first

    def problem(self, options: Sequence[str]) -> Problem:
        """All units, with a budget of 0 bits."""
        return Problem(
            np.concatenate(self._loss),
            np.concatenate(self._bits),
            0,
            np.concatenate(self._allowed),
            tuple(self._names),
            tuple(options),
        )

    def further(self) -> tuple[NDArray[np.int64], ...]:
        """Further costs of all units, (units, options) each."""
        return tuple(np.concatenate(costs) for costs in self._further)
