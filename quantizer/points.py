"""A row as a sum of low-bit rows: the greedy form of the source paper and the joint fit."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from .grid import Rounding, codes_of, places_of, signed_grid, sum_grid
from .steps import StepSearch, row_error, search_steps, storable_steps, unit_rows
from .sums import ROUNDS, SortedRows, alternate, code_combinations, nearest_codes

__all__ = ["Points", "fit_greedy", "fit_joint", "fit_point"]

# Beyond 2^8 sums the positional start is already within a percent, and exact assignment costs too much.
MAX_JOINT_BITS = 8
STARTS = 2
# The sign of a place decides on which side the sums reach further, by its share of them: from the fourth
# place on by too little to be worth a search.
SIGNED_PLACES = 3
# Shorter rows are fitted from every sign pattern and several scales: they end in poor local optima more
# often. At 64 weights, a common size of a group, it gains half a percent for 4 to 13 times the work.
LONG_WEIGHTS = 64
SHORT_SCALES = (1.0, 0.7, 0.8, 0.9, 1.1)
# Sums of binary points need not be an even grid: those that are dense where most weights lie take more rounds
# to find, and are found from steps that fall off more slowly than by halves.
BINARY_ROUNDS = 30
BINARY_RATIO = 1.6


@dataclass(frozen=True)
class Points:
    """Rows as ``sum_i steps[i] * codes[i]``.

    Attributes
    ----------
    codes : Tensor, shape (points, rows, weights), int8
    steps : Tensor, shape (points, rows), float32
        With 11 significant bits; the steps of joint points may be negative.
    """

    codes: Tensor
    steps: Tensor

    def values(self) -> Tensor:
        """The sum, shape (rows, weights)."""
        total = self.codes[0].to(self.steps.dtype) * self.steps[0][:, None]
        for codes, steps in zip(self.codes[1:], self.steps[1:], strict=True):
            total += codes.to(self.steps.dtype) * steps[:, None]
        return total

    def error(self, rows: Tensor) -> Tensor:
        """Squared error of every row, shape (rows,)."""
        return (self.values() - rows).square_().sum(1)


def fit_point(
    rows: Tensor,
    bits: int,
    *,
    search: StepSearch = StepSearch.MSE,
    p: float = 2.0,
    rounding: Rounding = Rounding.NEAREST,
) -> Points:
    """One point of `bits` bits with a searched step, rounded to what a half-precision number holds."""
    grid = signed_grid(bits, rounding)
    scaled, scale = unit_rows(rows)
    steps = storable_steps(search_steps(scaled, grid, search, p))
    codes = grid.codes(scaled, steps[:, None])
    if bits == 1:
        # No code is zero.
        steps = steps.where(rows.any(1), 0.0)
    return Points(codes.to(torch.int8)[None], (steps * scale)[None])


def fit_greedy(
    rows: Tensor,
    bits: int,
    points: int,
    *,
    search: StepSearch = StepSearch.MSE,
    p: float = 2.0,
    rounding: Rounding = Rounding.NEAREST,
) -> Points:
    """Point after point on the residual: ``r_1 = w``, ``r_{i+1} = r_i - step_i * code(r_i)``.

    A point that would raise the squared error of its row, as floor rounding can, gets zero codes, or where
    one bit has none a step of zero.

    References
    ----------
    Liu et al., "Post-training quantization with multiple points: mixed precision without mixed
    precision", AAAI 2021, algorithm 1.
    """
    scaled, scale = unit_rows(rows)
    fitted = fit_point(scaled, bits, search=search, p=p, rounding=rounding)
    for _ in range(points - 1):
        residual = scaled - fitted.values()
        extra = fit_point(residual, bits, search=search, p=p, rounding=rounding)
        fitted = _append(scaled, fitted, extra, bits)
    return Points(fitted.codes, fitted.steps * scale)


def fit_joint(rows: Tensor, bits: int, points: int) -> Points:
    """All points of a row fitted together to the least squared error.

    Steps in ratio ``2^bits`` make the sums of `points` signed digits a uniform grid of
    ``2^(bits * points)`` consecutive integers; the signs of the steps only move its limits. From the best
    of these grids, alternate: every weight takes the nearest of all sums, then the steps of a row are
    refitted by least squares, ``steps = argmin ||w - sum_i steps_i codes_i||``. A row never does worse
    than with one point less.

    Parameters
    ----------
    rows : Tensor, shape (rows, weights)

    Returns
    -------
    Points
    """
    scaled, scale = unit_rows(rows)
    fitted = _fit_unit(scaled, bits, points)
    return Points(fitted.codes, fitted.steps * scale)


def _fit_unit(rows: Tensor, bits: int, points: int) -> Points:
    if points == 1:
        return fit_point(rows, bits)
    # Guarantees that the error never grows with another point.
    fewer = _fit_unit(rows, bits, points - 1)
    best = _append(rows, fewer, fit_point(rows - fewer.values(), bits), bits)
    positional = _positional_starts(rows, bits, points) if bits > 1 else _binary_starts(rows, points)
    if bits * points > MAX_JOINT_BITS:
        for start in positional:
            best = _better(rows, best, _digits(rows, bits, start))
        return best
    ordered = SortedRows.of(rows)
    combinations = code_combinations(bits, points, rows.device)
    # All starts at once, as if they were rows of their own.
    starts = torch.stack([best.steps, *positional], 1)
    copies = ordered.of_rows(torch.arange(len(rows), device=rows.device).repeat(starts.shape[1]))
    rounds = ROUNDS if bits > 1 else BINARY_ROUNDS
    steps, error = alternate(copies, combinations, starts.flatten(1), rounds)
    winner = error.view(-1, len(rows)).argmin(0)
    steps = steps.view_as(starts).gather(1, winner.expand(points, 1, -1))[:, 0]
    return _better(rows, best, Points(nearest_codes(rows, combinations, steps), steps))


def _append(rows: Tensor, fitted: Points, extra: Points, bits: int) -> Points:
    """`fitted` and one more point, which is nothing in the rows that it does not help."""
    longer = Points(torch.cat([fitted.codes, extra.codes]), torch.cat([fitted.steps, extra.steps]))
    what = longer.steps if bits == 1 else longer.codes
    what[-1, longer.error(rows) > fitted.error(rows)] = 0
    return longer


def _better(rows: Tensor, first: Points, second: Points) -> Points:
    """Of each row the fit with less squared error, the first where they are equal."""
    better = second.error(rows) < first.error(rows)
    return Points(
        torch.where(better[None, :, None], second.codes, first.codes),
        torch.where(better[None, :], second.steps, first.steps),
    )


def _positional_starts(rows: Tensor, bits: int, points: int) -> list[Tensor]:
    """Steps, shape (points, rows), of the sign patterns that suit each row best, the best first."""
    place = rows.new_tensor(places_of(bits, points))
    patterns, steps, errors = [], [], []
    for pattern in itertools.product((1.0, -1.0), repeat=min(points, SIGNED_PLACES)):
        signed = place.clone()
        signed[: len(pattern)] *= torch.tensor(pattern, device=rows.device)
        grid = sum_grid(bits, [int(each) for each in signed])
        step = search_steps(rows, grid)
        patterns.append(signed)
        steps.append(step)
        errors.append(row_error(rows, grid, step))
    order = torch.stack(errors).argsort(0)
    short = rows.shape[1] < LONG_WEIGHTS
    signed, step = torch.stack(patterns), torch.stack(steps)
    starts = [
        signed[choice].T * step.gather(0, choice[None]) for choice in order[: None if short else STARTS]
    ]
    return [start * scale for start in starts for scale in (SHORT_SCALES if short else (1.0,))]


def _binary_starts(rows: Tensor, points: int) -> list[Tensor]:
    """Steps, shape (points, rows): of an even grid, of a slower fall, and of every point on what is left."""
    places = places_of(1, points)
    even = search_steps(rows, sum_grid(1, places))
    falling = rows.new_tensor([BINARY_RATIO**-i for i in range(points)])
    left, greedy = rows, []
    for _ in range(points):
        greedy.append(left.abs().mean(1))
        left = left.abs() - greedy[-1][:, None]
    return [
        rows.new_tensor(places)[:, None] * even,
        (falling / falling.norm())[:, None] * rows.square().mean(1).sqrt(),
        torch.stack(greedy),
    ]


def _digits(rows: Tensor, bits: int, steps: Tensor) -> Points:
    """Digits of the nearest positional sum, the largest place first, each given what is left."""
    steps = storable_steps(steps)
    low, high = codes_of(bits)[0], codes_of(bits)[-1]
    codes = []
    residual = rows.clone()
    for i, step in enumerate(steps):
        # The later digits reach further on one side than the other; aim at the middle of their reach.
        rest = torch.minimum(low * steps[i + 1 :], high * steps[i + 1 :]).sum(0)
        rest = rest + torch.maximum(low * steps[i + 1 :], high * steps[i + 1 :]).sum(0)
        code = ((residual - rest[:, None] / 2) / step[:, None]).round_().clamp_(low, high)
        residual -= code * step[:, None]
        codes.append(code.to(torch.int8))
    return Points(torch.stack(codes), steps)
