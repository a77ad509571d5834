"""The values that the rows of a layer can take at their steps: the nearest, and the two around a weight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from ..allocator import LayerCut
from ..quantizer import QuantizedRows, code_combinations
from .finalize import StoredLayer

__all__ = ["Bracket", "LayerGrid"]

# Beyond this many codes of all points but the last, codes are found point after point.
MOST_EARLIER = 2**7
TRIED_NUMBERS = 2**22
# In steps of the last point.
COINCIDING = 1e-3


class LayerGrid:
    """The grid of every weight of a layer at fixed steps, whatever the widths and points of its rows.

    Parameters
    ----------
    stored : StoredLayer
        Its steps make the grid.
    """

    def __init__(self, stored: StoredLayer) -> None:
        self.layer = stored
        self._grids = [_grid(part.rows) for part in stored.parts]
        first = stored.parts[0]
        rows = sum(len(part.index) for part in stored.parts)
        self._cut = stored.cut or LayerCut(rows, first.rows.codes.shape[2])
        self._part = torch.empty(rows, dtype=torch.int64, device=first.index.device)
        self._place = torch.empty_like(self._part)
        for number, part in enumerate(stored.parts):
            self._part[part.index] = number
            self._place[part.index] = torch.arange(len(part.index), device=part.index.device)

    def start(self) -> list[Tensor]:
        """The stored codes, one tensor (points, n, row weights) for each part, free to be written to."""
        return [part.rows.codes.clone() for part in self.layer.parts]

    def round_into(self, codes: Sequence[Tensor], values: Tensor, columns: Tensor) -> Tensor:
        """Round one weight of every channel to the nearest that it can be.

        Parameters
        ----------
        codes : list of Tensor
            As from `start`; the new codes are written here.
        values : Tensor, shape (channels,)
        columns : Tensor, shape (channels,), int64
            Which of its channel's weights each value is for.

        Returns
        -------
        Tensor, shape (channels,)
            The rounded values.
        """
        rounded = torch.empty_like(values)
        for number, (part, grid, into) in enumerate(zip(self.layer.parts, self._grids, codes, strict=True)):
            if self._cut.inputs:
                rows = columns // self._cut.inputs * self._cut.channels
                rows += torch.arange(len(rows), device=rows.device)
                mine = (self._part[rows] == number).nonzero()[:, 0]
                if len(mine) == 0:
                    continue
                place = self._place[rows[mine]]
                grid, column = grid.of(place), columns[mine, None] % self._cut.inputs
            else:
                mine = part.index
                place, column = self._place[mine], columns[mine, None]
            chosen = grid.nearest(values[mine, None], column)
            into[:, place, column[:, 0]] = grid.codes(chosen)[:, :, 0]
            rounded[mine] = grid.values(chosen, column)[:, 0]
        return rounded

    def nearest(self, rows: Tensor) -> list[Tensor]:
        """Codes of the values nearest to all weights, given as rows of the layer's cut."""
        columns = torch.arange(rows.shape[1], device=rows.device)
        return [
            grid.codes(grid.nearest(rows[part.index], columns.expand(len(part.index), -1)))
            for part, grid in zip(self.layer.parts, self._grids, strict=True)
        ]

    def stored(self, codes: Sequence[Tensor]) -> StoredLayer:
        """The layer with other codes and its own steps."""
        parts = [
            replace(part, rows=replace(part.rows, codes=new))
            for part, new in zip(self.layer.parts, codes, strict=True)
        ]
        return replace(self.layer, parts=tuple(parts))

    def bracket(self, weight: Tensor, *, sums: bool) -> Bracket:
        """The stored value of each weight, and the neighbour of it on the side where `weight` lies.

        Parameters
        ----------
        weight : Tensor, shape (channels, fan_in)
        sums : bool
            Whether a sum of points may become the next larger or smaller sum, which changes any of its
            points; else the last point alone is rounded up or down, and the earlier ones stay as stored.
            Where all points but the last have more than 7 bits, the last is rounded in either case.
        """
        rows = self._cut.to_rows(weight.float())
        low, gap, share = torch.empty_like(rows), torch.empty_like(rows), torch.empty_like(rows)
        is_upper = torch.empty_like(rows, dtype=torch.bool)
        lower, upper = [], []
        for part, grid in zip(self.layer.parts, self._grids, strict=True):
            digits = grid.digits(part.rows.codes.to(rows.dtype))
            columns = torch.arange(rows.shape[1], device=rows.device).expand(len(part.index), -1)
            below, above, where = grid.around(digits, rows[part.index], columns, sums=sums)
            value, other = grid.values(below, columns), grid.values(above, columns)
            low[part.index] = value
            gap[part.index] = other - value
            is_upper[part.index] = _is_nearer(grid.values(digits, columns), other, value)
            share[part.index] = where
            lower.append(grid.codes(below))
            upper.append(grid.codes(above))
        low, gap, is_upper, share = map(self._cut.from_rows, (low, gap, is_upper, share))
        return Bracket(self, low, gap, is_upper, share, tuple(lower), tuple(upper))

    def choose(self, lower: Sequence[Tensor], upper: Sequence[Tensor], up: Tensor) -> StoredLayer:
        """The layer with the codes `upper` where `up`, shape (channels, fan_in), says so, else `lower`."""
        rows = self._cut.to_rows(up)
        codes = [
            torch.where(rows[part.index], above, below)
            for part, below, above in zip(self.layer.parts, lower, upper, strict=True)
        ]
        return self.stored(codes)


@dataclass(frozen=True)
class Bracket:
    """Two neighbouring values of the grid for every weight.

    Attributes
    ----------
    grid : LayerGrid
    low, gap : Tensor, shape (channels, fan_in)
        The one value, and the other less the one; the gap of a negative step is negative.
    is_upper : Tensor, shape (channels, fan_in), bool
        Whether `low + gap` is the stored value; else `low` is.
    share : Tensor, shape (channels, fan_in)
        Where between the two the weight lies, as far as it is nearest to the stored value: 0 at `low`, 1 at
        the other, and 0.5 where another value of the grid than the stored one is nearer.
    lower, upper : tuple of Tensor, shape (points, n, row weights), int8
        Codes of both, for each part of the layer.
    """

    grid: LayerGrid
    low: Tensor
    gap: Tensor
    is_upper: Tensor
    share: Tensor
    lower: tuple[Tensor, ...]
    upper: tuple[Tensor, ...]

    def begin(self, soften: float) -> Tensor:
        """Where learning begins, 0 at `low`, 1 at the other: so far from the stored value to `share`."""
        stored = self.is_upper.to(self.share.dtype)
        return stored + soften * (self.share - stored)

    def choose(self, up: Tensor) -> StoredLayer:
        """The layer where each weight takes the value `low + gap` if `up`, else `low`."""
        return self.grid.choose(self.lower, self.upper, up)


class _LastPoint:
    """Rows whose digits are found point after point, each on what the ones before left over.

    Digits are codes in two's complement. Those of one bit are -1 and 0 for the codes -1 and 1, so that their
    steps are twice as large, and the sum of the rows' own steps, half of these, is added.
    """

    def __init__(self, rows: QuantizedRows) -> None:
        self.binary = rows.option.bits == 1
        self.half = 2 ** (rows.option.bits - 1)
        self.group = rows.option.group or rows.codes.shape[2]
        self.steps = rows.steps.expand(-1, rows.codes.shape[1], -1) * (2 if self.binary else 1)

    def digits(self, codes: Tensor) -> Tensor:
        """Digits of stored codes."""
        return (codes - 1) / 2 if self.binary else codes

    def codes(self, digits: Tensor) -> Tensor:
        """The codes to be stored, int8."""
        return (2 * digits + 1 if self.binary else digits).to(torch.int8)

    def of(self, place: Tensor) -> Self:
        """The grid of some of the rows."""
        some = copy(self)
        some.steps = self.steps[:, place]
        return some

    def steps_at(self, columns: Tensor) -> Tensor:
        """Steps, shape (points, n, k), of the weights in `columns`, shape (n, k)."""
        if self.steps.shape[2] == 1:
            return self.steps.expand(-1, -1, columns.shape[1])
        return self.steps.gather(2, (columns // self.group).expand(len(self.steps), -1, -1))

    def offset(self, steps: Tensor) -> Tensor:
        """The values whose digits are all zero, shape (n, k)."""
        return steps.sum(0) / 2 if self.binary else torch.zeros_like(steps[0])

    def values(self, digits: Tensor, columns: Tensor) -> Tensor:
        """``sum_i steps[i] * digits[i] + offset``, shape (n, k)."""
        steps = self.steps_at(columns)
        return (digits * steps).sum(0) + self.offset(steps)

    def nearest(self, values: Tensor, columns: Tensor) -> Tensor:
        """Digits (points, n, k) of the value nearest to each of `values`, shape (n, k)."""
        steps = self.steps_at(columns)
        digits = torch.empty_like(steps)
        residual = values - self.offset(steps)
        for i, step in enumerate(steps):
            # The later points reach further on one side than the other; aim at the middle of their reach.
            middle = -steps[i + 1 :].sum(0) / 2
            digits[i] = ((residual - middle) / step).round_().clamp_(-self.half, self.half - 1)
            residual = residual - digits[i] * step
        return digits

    def around(
        self, digits: Tensor, values: Tensor, columns: Tensor, *, sums: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Digits with the last point rounded down and up, one of them `digits`, and where `values` lie.

        `sums` makes no difference where the earlier points have too many codes to try.
        """
        step = self.steps_at(columns)[-1]
        # From the stored value to the weight, in steps of the last point.
        offset = ((values - self.values(digits, columns)) / step).clamp(-0.5, 0.5)
        last = (digits[-1] + offset).floor_().clamp_(-self.half, self.half - 2)
        share = (digits[-1] + offset - last).clamp_(0.0, 1.0)
        return torch.cat([digits[:-1], last[None]]), torch.cat([digits[:-1], last[None] + 1]), share


class _Sums(_LastPoint):
    """Rows whose nearest sum of points is exact: every code of the earlier points is tried.

    The last point's code follows from what they leave over, so that no table of sums is kept, whatever the
    number of groups.
    """

    def __init__(self, rows: QuantizedRows) -> None:
        super().__init__(rows)
        option = rows.option
        self.earlier = self.digits(code_combinations(option.bits, option.points - 1, rows.steps.device))

    def nearest(self, values: Tensor, columns: Tensor) -> Tensor:
        found = [self._nearest(*piece) for piece in self._pieces(values, columns)]
        return torch.cat(found, 2)

    def around(
        self, digits: Tensor, values: Tensor, columns: Tensor, *, sums: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        if not sums:
            return super().around(digits, values, columns, sums=False)
        own = self.values(digits, columns)
        side = torch.where(values < own, -1.0, 1.0)
        other = torch.cat([self._next(*piece) for piece in self._pieces(own, columns, side)], 2)
        beyond = self.values(other, columns)
        is_upper = beyond < own
        below, above = torch.where(is_upper, other, digits), torch.where(is_upper, digits, other)
        middle = (own + beyond) / 2
        inside = torch.where(is_upper, values.maximum(middle), values.minimum(middle))
        low, gap = own.minimum(beyond), (own - beyond).abs_()
        share = ((inside - low) / gap.where(gap > 0, 1.0)).clamp_(0.0, 1.0)
        return below, above, share

    def _pieces(self, values: Tensor, columns: Tensor, *more: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Columns of all, so few at a time that the numbers tried take little memory."""
        width = max(1, TRIED_NUMBERS // (len(values) * len(self.earlier)))
        return zip(*(torch.split(each, width, 1) for each in (values, columns, *more)), strict=True)

    def _rest(self, values: Tensor, steps: Tensor) -> Tensor:
        """What each choice of the earlier digits leaves of `values`, shape (choices, n, k)."""
        return values - self.offset(steps) - torch.einsum("mp,pnk->mnk", self.earlier, steps[:-1])

    def _nearest(self, values: Tensor, columns: Tensor) -> Tensor:
        steps = self.steps_at(columns)
        rest = self._rest(values, steps)
        last = (rest / steps[-1]).round_().clamp_(-self.half, self.half - 1)
        return self._digits((rest - last * steps[-1]).abs_().argmin(0), last)

    def _next(self, own: Tensor, columns: Tensor, side: Tensor) -> Tensor:
        """Digits of the next larger sum where `side` is 1, the next smaller where it is -1.

        At the end of the sums it is the one on the other side.
        """
        steps = self.steps_at(columns)
        rest, step = self._rest(own, steps), steps[-1]
        found, distance = self._beyond(rest, step, side)
        at_end = distance.isinf()
        if bool(at_end.any()):
            found = torch.where(at_end, self._beyond(rest, step, -side)[0], found)
        return found

    def _beyond(self, rest: Tensor, step: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
        """Digits of the nearest sum on one side, and how far it is: infinitely where there is none."""
        ahead = side * step.sign()
        # Sums that all but coincide leave nothing to choose.
        last = ahead * ((ahead * rest / step + COINCIDING).floor_() + 1)
        last = torch.where(ahead > 0, last.clamp_min(-self.half), last.clamp_max(self.half - 1))
        is_code = (last >= -self.half) & (last < self.half)
        distance, best = (side * (last * step - rest)).masked_fill_(~is_code, torch.inf).min(0)
        return self._digits(best, last), distance

    def _digits(self, best: Tensor, last: Tensor) -> Tensor:
        return torch.cat([self.earlier.T[:, best], last.gather(0, best[None])])


def _is_nearer(values: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Whether values are nearer to `first` than to `second`."""
    return (values - first).abs() < (values - second).abs()


def _grid(rows: QuantizedRows) -> _LastPoint:
    few = 2 ** (rows.option.bits * (rows.option.points - 1)) <= MOST_EARLIER
    return _Sums(rows) if rows.option.points > 1 and few else _LastPoint(rows)
