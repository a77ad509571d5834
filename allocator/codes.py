"""What layers save whose units all choose one option: their option codes. It lowers every bound."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .dual import choose_at
from .multi import MultiProblem

__all__ = ["CodeSavings"]

PRICE_RANGE, PRICE_STEPS = 3.0, 24
"""Powers of two around given prices, and steps, in which better ones are searched."""
GOLDEN = (5**0.5 - 1) / 2
ROUNDING = 1e-13
"""Of the magnitudes that are summed: more than the rounding of their float64 sums."""


@dataclass(frozen=True, eq=False)
class CodeSavings:
    """Groups of units that cost less than the sum of their units where all have one option.

    Parameters
    ----------
    begin, end : int array (groups,)
        Units of every group, which follow each other.
    saved : int64 array (budgets, groups)
        What a group of one option saves of every budget, the same for each of its units.
    """

    begin: NDArray[np.intp]
    end: NDArray[np.intp]
    saved: NDArray[np.int64]

    def everywhere(self, problem: MultiProblem) -> MultiProblem:
        """The problem as if every group saved, whatever its options: what no choice meets here, none does."""
        costs = problem.costs.copy()
        for begin, end, saved in zip(self.begin, self.end, self.saved.T, strict=True):
            costs[:, begin:end] -= (saved // (end - begin))[:, None, None]
        return replace(problem, costs=costs)

    def relief(self, problem: MultiProblem, prices: NDArray[np.float64]) -> NDArray[np.float64]:
        """How much less the priced loss of every group is with one option than with each unit's own best.

        Negative where it is more; both alternatives are at their best, whatever the budgets.

        Parameters
        ----------
        prices : float64 array (budgets,)
            Loss per unit of each budget.
        """
        if not len(self.begin):
            return np.zeros(0)
        priced = _priced(problem, prices)
        # Every other piece lies between two groups; a row of zeros ends the last one.
        pieces = np.column_stack([self.begin, self.end]).ravel()
        priced = np.concatenate([priced, np.zeros((1, priced.shape[1]))])
        apart = np.add.reduceat(priced.min(axis=1), pieces)[::2]
        alike = np.add.reduceat(priced, pieces)[::2].min(axis=1) - prices @ self.saved
        return np.asarray(apart - alike)

    def bound(self, problem: MultiProblem, prices: NDArray[np.float64]) -> float:
        """Lower bound of the loss of all choices within the budgets when groups of one option save.

        The Lagrangian bound at these prices, see `choose_at`, with the better alternative of every group.
        """
        priced = choose_at(problem, prices)
        relief = self.relief(problem, prices).clip(min=0.0)
        summed = np.abs(_priced(problem, prices).min(axis=1)).sum() + prices @ problem.limits
        return float(priced.value - relief.sum() - ROUNDING * summed)

    def best_bound(
        self, problem: MultiProblem, prices: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], float]:
        """Prices in the ratio of these with the highest bound, and the bound.

        The bound is concave in the prices: a golden-section search over their size.
        """
        tried = {0.0: self.bound(problem, prices)}

        def bound(size: float) -> float:
            if size not in tried:
                tried[size] = self.bound(problem, prices * 2**size)
            return tried[size]

        low, high = -PRICE_RANGE, PRICE_RANGE
        for _ in range(PRICE_STEPS):
            first, second = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
            low, high = (low, second) if bound(first) >= bound(second) else (first, high)
        best = max(tried, key=lambda size: tried[size])
        return prices * 2**best, tried[best]


def _priced(problem: MultiProblem, prices: NDArray[np.float64]) -> NDArray[np.float64]:
    priced = problem.loss + np.tensordot(prices, problem.costs, axes=1)
    return priced if problem.allowed is None else np.where(problem.allowed, priced, np.inf)
