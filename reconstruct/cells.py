"""The cells of a layer, each of the weights that share a step, and new steps for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..allocator import LayerCut
from ..quantizer import Option, StepUnit, least_step, steps_from_half, steps_to_half
from .finalize import StoredLayer
from .grids import LayerGrid

__all__ = [
    "cell_sums",
    "cells_of",
    "chosen_channels",
    "nearest_at",
    "shares_step",
    "storable",
    "sums_of_sharing",
    "with_factors",
    "with_steps",
]


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
    """Steps as they come back from 16 bits: never zero, and none below `least_step`."""
    kept = steps_from_half(*steps_to_half(steps))
    floor = least_step(kept)
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


def shares_step(layer: StoredLayer) -> bool:
    """Whether all channels of a layer have the same steps."""
    return any(part.rows.option.unit is StepUnit.TENSOR for part in layer.parts)


def sums_of_sharing(layer: StoredLayer, values: Tensor) -> Tensor:
    """For every channel the sum of a value of each, shape (channels,), over those that share its steps."""
    together = values.clone()
    for part in layer.parts:
        if part.rows.option.unit is StepUnit.TENSOR:
            # Rows of a strip are its channels in order.
            own = torch.unique(part.index % len(values))
            together[own] = values[own].sum()
    return together


def with_factors(layer: StoredLayer, factors: Tensor) -> StoredLayer:
    """The layer with its steps times a factor for each channel, rounded to what 16 bits hold.

    Parameters
    ----------
    factors : Tensor, shape (channels,)
        The same for those that share their steps.
    """
    steps = []
    for part in layer.parts:
        own = factors[part.index % len(factors), None]
        steps.append(part.rows.steps * own[: part.rows.steps.shape[1]])
    return with_steps(layer, steps)


def chosen_channels(first: StoredLayer, second: StoredLayer, take: Tensor) -> StoredLayer:
    """Channels of the second layer where `take`, shape (channels,), says so, else of the first.

    Those that share their steps come with one verdict for all.
    """
    parts = []
    for one, other in zip(first.parts, second.parts, strict=True):
        mine = take[one.index % len(take)][None, :, None]
        steps = torch.where(mine[:, : one.rows.steps.shape[1]], other.rows.steps, one.rows.steps)
        codes = torch.where(mine, other.rows.codes, one.rows.codes)
        parts.append(replace(one, rows=replace(one.rows, codes=codes, steps=steps)))
    return replace(first, parts=tuple(parts))


def nearest_at(layer: StoredLayer, weight: Tensor) -> StoredLayer:
    """The layer with the codes that are nearest to a weight (channels, fan_in) at its steps."""
    fan_in = weight.shape[1]
    cut = layer.cut or LayerCut(len(weight), fan_in)
    grid = LayerGrid(layer)
    return grid.stored(grid.nearest(cut.to_rows(weight)))
