"""The cells of a layer, each of the weights that share a step, and new steps for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..allocator import LayerCut
from ..quantizer import Option, StepUnit, steps_from_half, steps_to_half
from .finalize import StoredLayer
from .grids import LayerGrid

__all__ = ["cell_sums", "cells_of", "nearest_at", "storable", "with_steps"]

# Half precision has its full precision over so many powers of two.
SMALLEST_RATIO = 2.0**-28


def cells_of(rows: Tensor, option: Option) -> Tensor:
    """Rows (n, k) as cells, shape (n or 1, groups, weights); a short last group is filled with zeros."""
    if option.unit is StepUnit.TENSOR:
        return rows.reshape(1, 1, -1)
    size = option.group or rows.shape[1]
    padded = torch.nn.functional.pad(rows, (0, -rows.shape[1] % size))
    return padded.view(len(rows), -1, size)


def cell_sums(values: Tensor, option: Option) -> Tensor:
    """Sums over the weights of every cell, shape (n or 1, groups), of a value for each weight, (n, k)."""
    return cells_of(values, option).sum(2)


def storable(steps: Tensor) -> Tensor:
    """Steps as they come back from 16 bits: never zero, and none beyond 2^28 below the largest."""
    kept = steps_from_half(*steps_to_half(steps))
    floor = kept.abs().amax() * SMALLEST_RATIO
    _, exponent = torch.frexp(floor)
    # The next power of two, which half precision holds.
    floor = torch.ldexp(torch.ones_like(floor), exponent)
    return torch.where(kept.abs() < floor, torch.where(kept < 0, -floor, floor), kept)


def with_steps(layer: StoredLayer, steps: Sequence[Tensor]) -> StoredLayer:
    """The layer with its codes and other steps, one tensor (points, n or 1, groups) for each part.

    Steps are rounded to what 16 bits hold.
    """
    parts = [
        replace(part, rows=replace(part.rows, steps=storable(new)))
        for part, new in zip(layer.parts, steps, strict=True)
    ]
    return replace(layer, parts=tuple(parts))


def nearest_at(layer: StoredLayer, weight: Tensor) -> StoredLayer:
    """The layer with the codes that are nearest to a weight (channels, fan_in) at its steps."""
    fan_in = weight.shape[1]
    cut = layer.cut or LayerCut(len(weight), fan_in)
    grid = LayerGrid(layer)
    return grid.stored(grid.nearest(cut.to_rows(weight)))
