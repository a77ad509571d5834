"""The values that the rows of a layer can take at their steps: the nearest, and the two around a weight."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from ..allocator import LayerCut
from ..quantizer import QuantizedRows, code_combinations
from .finalize import StoredLayer

__all__ = ["Bracket", "LayerGrid"]

# Beyond this many sums of a row's points, its codes are found point after point instead of in a table.
MOST_SUMS = 2**8
TABLE_NUMBERS = 2**22


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
            into[:, place, column[:, 0]] = chosen[:, :, 0].to(torch.int8)
            rounded[mine] = grid.values(chosen, column)[:, 0]
        return rounded

    def nearest(self, rows: Tensor) -> list[Tensor]:
        """Codes of the values nearest to all weights, given as rows of the layer's cut."""
        columns = torch.arange(rows.shape[1], device=rows.device)
        return [
            grid.nearest(rows[part.index], columns.expand(len(part.index), -1)).to(torch.int8)
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
            Sums of more than 8 bits have the last point rounded in either case.
        """
        rows = self._cut.to_rows(weight.float())
        low, gap, share = torch.empty_like(rows), torch.empty_like(rows), torch.empty_like(rows)
        is_upper = torch.empty_like(rows, dtype=torch.bool)
        lower, upper = [], []
        for part, grid in zip(self.layer.parts, self._grids, strict=True):
            codes = part.rows.codes.to(rows.dtype)
            columns = torch.arange(rows.shape[1], device=rows.device).expand(len(part.index), -1)
            below, above, where = grid.around(codes, rows[part.index], columns, sums=sums)
            value, other = grid.values(below, columns), grid.values(above, columns)
            low[part.index] = value
            gap[part.index] = other - value
            is_upper[part.index] = _is_nearer(grid.values(codes, columns), other, value)
            share[part.index] = where
            lower.append(below.to(torch.int8))
            upper.append(above.to(torch.int8))
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
    """Rows whose codes are found point after point, each on what the ones before left over."""

    def __init__(self, rows: QuantizedRows) -> None:
        self.half = 2 ** (rows.option.bits - 1)
        self.group = rows.option.group or rows.codes.shape[2]
        self.steps = rows.steps.expand(-1, rows.codes.shape[1], -1)

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

    def values(self, codes: Tensor, columns: Tensor) -> Tensor:
        """``sum_i steps[i] * codes[i]``, shape (n, k)."""
        return (codes * self.steps_at(columns)).sum(0)

    def nearest(self, values: Tensor, columns: Tensor) -> Tensor:
        """Codes (points, n, k) of the value nearest to each of `values`, shape (n, k)."""
        steps = self.steps_at(columns)
        codes = torch.empty_like(steps)
        residual = values
        for i, step in enumerate(steps):
            # The later points reach further on one side than the other; aim at the middle of their reach.
            middle = -steps[i + 1 :].sum(0) / 2
            codes[i] = ((residual - middle) / step).round_().clamp_(-self.half, self.half - 1)
            residual = residual - codes[i] * step
        return codes

    def around(
        self, codes: Tensor, values: Tensor, columns: Tensor, *, sums: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Codes with the last point rounded down and up, one of them `codes`, and where `values` lie between.

        `sums` makes no difference without a table of them.
        """
        step = self.steps_at(columns)[-1]
        # From the stored value to the weight, in steps of the last point.
        offset = ((values - self.values(codes, columns)) / step).clamp(-0.5, 0.5)
        last = (codes[-1] + offset).floor_().clamp_(-self.half, self.half - 2)
        share = (codes[-1] + offset - last).clamp_(0.0, 1.0)
        return torch.cat([codes[:-1], last[None]]), torch.cat([codes[:-1], last[None] + 1]), share


class _Sums(_LastPoint):
    """Rows with a sorted table of all sums of their points."""

    def __init__(self, rows: QuantizedRows) -> None:
        super().__init__(rows)
        combinations = code_combinations(rows.option.bits, rows.option.points, rows.steps.device)
        sums = torch.einsum("png,sp->ngs", self.steps, combinations)
        self.sums, self.order = sums.sort(2)
        self.borders = (self.sums[:, :, 1:] + self.sums[:, :, :-1]) / 2
        self.codes = combinations.T.contiguous()

    def of(self, place: Tensor) -> Self:
        some = super().of(place)
        some.sums, some.order, some.borders = self.sums[place], self.order[place], self.borders[place]
        return some

    def nearest(self, values: Tensor, columns: Tensor) -> Tensor:
        return self._codes(self._place(self.borders, values, columns), columns)

    def around(
        self, codes: Tensor, values: Tensor, columns: Tensor, *, sums: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        if not sums:
            return super().around(codes, values, columns, sums=False)
        own = self.values(codes, columns)
        place = self._place(self.borders, own, columns)
        place = (place - (values < own).to(place.dtype)).clamp_(0, self.sums.shape[2] - 2)
        below, above = self._codes(place, columns), self._codes(place + 1, columns)
        low, high = self.values(below, columns), self.values(above, columns)
        gap = high - low
        # Sums that coincide leave nothing to choose.
        middle = (low + high) / 2
        at_high = _is_nearer(own, high, low)
        inside = torch.where(at_high, values.maximum(middle), values.minimum(middle))
        share = ((inside - low) / gap.where(gap > 0, 1.0)).clamp_(0.0, 1.0)
        return below, above, share

    def _place(self, edges: Tensor, values: Tensor, columns: Tensor) -> Tensor:
        """How many of the edges of its cell are at most each value, shape (n, k)."""
        if edges.shape[1] == 1:
            return torch.searchsorted(edges[:, 0], values.contiguous(), right=True)
        rows = torch.arange(len(values), device=values.device)[:, None]
        piece = max(1, TABLE_NUMBERS // (len(values) * edges.shape[2]))
        found = [
            torch.searchsorted(edges[rows, cell // self.group], value[:, :, None], right=True)[:, :, 0]
            for value, cell in zip(torch.split(values, piece, 1), torch.split(columns, piece, 1), strict=True)
        ]
        return torch.cat(found, 1)

    def _codes(self, place: Tensor, columns: Tensor) -> Tensor:
        rows = torch.arange(len(place), device=place.device)[:, None]
        cells = columns // self.group if self.order.shape[1] > 1 else torch.zeros_like(columns)
        return self.codes[:, self.order[rows, cells, place]]


def _is_nearer(values: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Whether values are nearer to `first` than to `second`."""
    return (values - first).abs() < (values - second).abs()


def _grid(rows: QuantizedRows) -> _LastPoint:
    few = 2 ** (rows.option.bits * rows.option.points) <= MOST_SUMS
    return _Sums(rows) if rows.option.points > 1 and few else _LastPoint(rows)
