"""Rows as the nearest of all sums of n codes: the exact assignment, and its alternation with the steps.

What the least-squares steps of a row need is little: how many weights take each of the ``2^(bits n)`` sums,
and what those weights add up to. On a sorted row with running totals both follow from where the borders
between neighbouring sums fall, at a cost of ``sums * log(weights)`` instead of ``weights * log(sums)`` and
without touching a code; the codes are looked up once, for the steps that won.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .grid import codes_of
from .steps import storable_steps

__all__ = ["SortedRows", "alternate", "code_combinations", "nearest_codes"]

ROUNDS = 8
# A row whose error falls by less than this in a round has arrived.
LEAST_GAIN = 1e-4
# Of the largest sum of squared codes: decides the step of a point whose codes are all zero, or a copy of
# another's, and is nothing beside the others.
RIDGE = 1e-6


@dataclass(frozen=True)
class SortedRows:
    """Rows with their weights in ascending order.

    Attributes
    ----------
    weights : Tensor, shape (rows, weights), float32
    totals : Tensor, shape (rows, weights + 1), float64
        Sum of the first i weights.
    energy : Tensor, shape (rows,), float64
        Sum of squares.
    """

    weights: Tensor
    totals: Tensor
    energy: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> SortedRows:
        """Sort `rows`, shape (rows, weights)."""
        weights = rows.sort(1).values
        wide = weights.double()
        totals = torch.nn.functional.pad(wide.cumsum(1), (1, 0))
        return cls(weights, totals, wide.square().sum(1))

    def of_rows(self, index: Tensor) -> SortedRows:
        """Some of the rows only."""
        return SortedRows(self.weights[index], self.totals[index], self.energy[index])


def code_combinations(bits: int, points: int, device: torch.device) -> Tensor:
    """All ways to choose a code of `bits` bits for each point, shape (2^(bits * points), points), float32."""
    codes = torch.tensor(codes_of(bits), device=device, dtype=torch.float32)
    return torch.cartesian_prod(*[codes] * points).view(-1, points)


def alternate(
    rows: SortedRows, combinations: Tensor, steps: Tensor, rounds: int = ROUNDS
) -> tuple[Tensor, Tensor]:
    """Nearest sums at given steps and least-squares steps at given codes, in turn, from `steps` on.

    Every row goes its own way and stops when a round no longer helps it, so the result of a row does not
    depend on the rows beside it.

    Parameters
    ----------
    rows : SortedRows
    combinations : Tensor, shape (sums, points)
        From `code_combinations`.
    steps : Tensor, shape (points, rows)
    rounds : int
        At most.

    Returns
    -------
    steps : Tensor, shape (points, rows)
        The best visited, with 11 significant bits.
    error : Tensor, shape (rows,), float64
        Their squared error.
    """
    best = torch.zeros_like(steps)
    least = torch.full_like(rows.energy, torch.inf)
    active = torch.arange(len(least), device=least.device)
    for _ in range(rounds):
        steps = storable_steps(steps)
        gram, product = _moments(rows, combinations, steps)
        wide = steps.T.double()
        # ||w - C s||^2 = ||w||^2 + s' (C' C s - 2 C' w), never negative but for rounding.
        error = (rows.energy + (((gram * wide[:, None, :]).sum(2) - 2 * product) * wide).sum(1)).clamp_min(0)
        better = error < least[active]
        gains = error < least[active] * (1 - LEAST_GAIN)
        best[:, active[better]] = steps[:, better]
        least[active[better]] = error[better]
        active = active[gains]
        if len(active) == 0:
            break
        if not bool(gains.all()):
            rows = rows.of_rows(gains)
        steps = _least_squares(gram[gains], product[gains], wide[gains])
    return best, least


def nearest_codes(rows: Tensor, combinations: Tensor, steps: Tensor) -> Tensor:
    """Codes of the sum nearest to each weight of `rows`, shape (points, rows, weights), int8."""
    sums, order = _sums(combinations, steps).sort(1)
    borders = (sums[:, 1:] + sums[:, :-1]) / 2
    nearest = order.gather(1, torch.searchsorted(borders, rows.contiguous()))
    return combinations.T.to(torch.int8)[:, nearest]


def _sums(combinations: Tensor, steps: Tensor) -> Tensor:
    """All sums of every row, shape (rows, sums)."""
    # Element by element: a matrix product may add up in another order for another number of rows.
    total = steps[0][:, None] * combinations[:, 0]
    for step, codes in zip(steps[1:], combinations.T[1:], strict=True):
        total += step[:, None] * codes
    return total


def _moments(rows: SortedRows, combinations: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """``C' C``, shape (rows, points, points), and ``C' w``, shape (rows, points), C a row's nearest codes."""
    sums, order = _sums(combinations, steps).sort(1)
    borders = (sums[:, 1:] + sums[:, :-1]) / 2
    edges = torch.nn.functional.pad(torch.searchsorted(rows.weights, borders), (1, 1))
    edges[:, -1] = rows.weights.shape[1]
    # Back to the order of the combinations, which is the same for all rows.
    counts = torch.empty_like(sums, dtype=torch.float64).scatter_(1, order, edges.diff().double())
    totals = torch.empty_like(counts).scatter_(1, order, rows.totals.gather(1, edges).diff())
    wide = combinations.double()
    squares = (wide[:, :, None] * wide[:, None, :]).flatten(1)
    points = combinations.shape[1]
    return (counts @ squares).view(-1, points, points), totals @ wide


def _least_squares(gram: Tensor, product: Tensor, steps: Tensor) -> Tensor:
    """``argmin ||w - C s||^2 + ridge ||s - steps||^2``, shape (points, rows), float32."""
    ridge = RIDGE * gram.diagonal(dim1=1, dim2=2).amax(1).clamp_min(1.0)
    eye = torch.eye(gram.shape[1], device=gram.device, dtype=gram.dtype)
    solution: Tensor = torch.linalg.solve(gram + ridge[:, None, None] * eye, product + ridge[:, None] * steps)
    return solution.T.to(torch.float32).contiguous()
