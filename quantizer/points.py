"""A row as a sum of low-bit rows: the greedy form of the source paper and the joint fit."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from .grid import Grid, Rounding, signed_grid
from .steps import StepSearch, row_error, search_steps, storable_steps

__all__ = ["Points", "fit_greedy", "fit_joint", "fit_point"]

# Beyond 2^8 sums the positional start is already within a percent, and exact assignment costs too much.
MAX_JOINT_BITS = 8
STARTS = 2
ROUNDS = 8
# Rows up to this long are fitted from every sign pattern: they end in poor local optima more often.
SHORT_WEIGHTS = 64
SHORT_SCALES = (1.0, 0.7, 0.8, 0.9, 1.1)


@dataclass(frozen=True)
class Points:
    """Rows as ``sum_i steps[i] * codes[i]``.

    Attributes
    ----------
    codes : Tensor, shape (points, rows, weights), int8
    steps : Tensor, shape (points, rows), float32
        Storable in 16 bits; the steps of joint points may be negative.
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
    """One point of `bits` bits with a searched step."""
    grid = signed_grid(bits, rounding)
    steps = storable_steps(search_steps(rows, grid, search, p))
    return Points(grid.codes(rows, steps[:, None]).to(torch.int8)[None], steps[None])


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

    References
    ----------
    Liu et al., "Post-training quantization with multiple points: mixed precision without mixed
    precision", AAAI 2021, algorithm 1.
    """
    fitted = fit_point(rows, bits, search=search, p=p, rounding=rounding)
    for _ in range(points - 1):
        residual = rows - fitted.values()
        fitted = _append(fitted, fit_point(residual, bits, search=search, p=p, rounding=rounding))
    return fitted


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
    if points == 1:
        return fit_point(rows, bits)
    # Guarantees that the error never grows with another point.
    fewer = fit_joint(rows, bits, points - 1)
    best = _append(fewer, fit_point(rows - fewer.values(), bits))
    least = best.error(rows)
    exact = bits * points <= MAX_JOINT_BITS
    starts = _positional_starts(rows, bits, points)
    for steps in [*starts, best.steps] if exact else starts:
        candidate = _alternate(rows, bits, steps) if exact else _digits(rows, bits, steps)
        error = candidate.error(rows)
        better = error < least
        least = torch.where(better, error, least)
        best = Points(
            torch.where(better[None, :, None], candidate.codes, best.codes),
            torch.where(better[None, :], candidate.steps, best.steps),
        )
    return best


def _append(fitted: Points, extra: Points) -> Points:
    return Points(torch.cat([fitted.codes, extra.codes]), torch.cat([fitted.steps, extra.steps]))


def _positional_starts(rows: Tensor, bits: int, points: int) -> list[Tensor]:
    """Steps, shape (points, rows), of the sign patterns that suit each row best, the best first."""
    place = torch.tensor([2.0 ** (bits * i) for i in reversed(range(points))], device=rows.device)
    patterns, steps, errors = [], [], []
    for pattern in itertools.product((1.0, -1.0), repeat=points):
        signed = place * torch.tensor(pattern, device=rows.device)
        grid = _sum_grid(bits, signed)
        step = search_steps(rows, grid)
        patterns.append(signed)
        steps.append(step)
        errors.append(row_error(rows, grid, step))
    order = torch.stack(errors).argsort(0)
    short = rows.shape[1] <= SHORT_WEIGHTS
    signed, step = torch.stack(patterns), torch.stack(steps)
    starts = [
        signed[choice].T * step.gather(0, choice[None]) for choice in order[: None if short else STARTS]
    ]
    return [start * scale for start in starts for scale in (SHORT_SCALES if short else (1.0,))]


def _sum_grid(bits: int, place: Tensor) -> Grid:
    """The consecutive integers that digits of `bits` bits at the signed places reach."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    least = sum(min(low * int(p), high * int(p)) for p in place)
    most = sum(max(low * int(p), high * int(p)) for p in place)
    return Grid(-least, most)


def _alternate(rows: Tensor, bits: int, steps: Tensor) -> Points:
    """Nearest sums and least-squares steps in turn; the best visited state, with storable steps."""
    digits = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1), device=rows.device, dtype=rows.dtype)
    combinations = torch.cartesian_prod(*[digits] * len(steps))
    best: Points | None = None
    least = torch.full_like(rows[:, 0], torch.inf)
    for _ in range(ROUNDS):
        steps = storable_steps(steps)
        codes = _nearest_sums(rows, combinations, steps)
        state = Points(codes.to(torch.int8), steps)
        error = state.error(rows)
        better = error < least
        if best is None:
            best = state
        elif not bool((error < least * (1 - 1e-4)).any()):
            break
        else:
            best = Points(
                torch.where(better[None, :, None], state.codes, best.codes),
                torch.where(better[None, :], state.steps, best.steps),
            )
        least = torch.where(better, error, least)
        steps = _least_squares(rows, codes, steps)
    assert best is not None
    return best


def _nearest_sums(rows: Tensor, combinations: Tensor, steps: Tensor) -> Tensor:
    sums, order = (steps.T @ combinations.T).sort(1)
    borders = (sums[:, 1:] + sums[:, :-1]) / 2
    nearest = order.gather(1, torch.searchsorted(borders.contiguous(), rows.contiguous()))
    return combinations.T[:, nearest]


def _least_squares(rows: Tensor, codes: Tensor, steps: Tensor) -> Tensor:
    basis = codes.permute(1, 2, 0)
    gram = basis.transpose(1, 2) @ basis
    # A point whose codes are all zero, or a copy of another's, leaves its step free: keep it near the old.
    ridge = 1e-6 * gram.diagonal(dim1=1, dim2=2).amax(1).clamp_min(1.0)
    eye = torch.eye(len(steps), device=rows.device, dtype=rows.dtype)
    gram = gram + ridge[:, None, None] * eye
    target = (basis.transpose(1, 2) @ rows[:, :, None])[:, :, 0] + ridge[:, None] * steps.T
    return torch.linalg.solve(gram, target).T.contiguous()


def _digits(rows: Tensor, bits: int, steps: Tensor) -> Points:
    """Digits of the nearest positional sum, the largest place first, each given what is left."""
    steps = storable_steps(steps)
    half = 2 ** (bits - 1)
    low, high = -half, half - 1
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
