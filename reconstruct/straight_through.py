"""Learning the codes and the steps of a layer at once, by slopes that pass straight through the rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..allocator import LayerCut
from ..errors import InputError
from ..quantizer import Option, StepUnit, codes_of
from .cells import cell_sums, chosen_channels, sums_of_sharing, with_steps
from .finalize import StoredLayer
from .grids import LayerGrid
from .output_error import OutputError

__all__ = ["StraightThrough", "learn_layer"]

# Adam's, in mean slopes of the layer before learning: a weight on which the data says little moves little,
# instead of as fast as all others.
EPSILON = 0.1
_RANGES = (("iterations", 1, 10**7), ("rate", 1e-9, 10.0), ("step_rate", 0.0, 1.0))


@dataclass(frozen=True)
class StraightThrough:
    """How codes and steps are learned.

    Parameters
    ----------
    iterations : int
        Steps of Adam per layer.
    rate : float
        Learning rate of the weights, in steps of the grid; falls to 0 along half a cosine.
    step_rate : float
        Learning rate of the steps, relative to them; 0 leaves them as they are.

    Raises
    ------
    InputError
        A setting outside its range.
    """

    iterations: int = 300
    rate: float = 2e-2
    step_rate: float = 5e-4

    def __post_init__(self) -> None:
        for name, least, most in _RANGES:
            value = getattr(self, name)
            if not least <= value <= most:
                raise InputError(f"AdaQuant has {name} {value:g}; it is between {least:g} and {most:g}")


def learn_layer(start: StoredLayer, error: OutputError, settings: StraightThrough) -> StoredLayer:
    """The codes and steps of least output error that are met on the way down from `start`.

    A weight is ``s * round(u)`` (with points the nearest of their sums ``sum_i s_i q_i``), where u, the
    weight in steps, and s are learned together. With G the slope of the error with respect to the stored
    weights, u takes the slope ``G s``, as if nothing were rounded, and s the slope ``sum G q`` over its cell.
    A weight that leaves the grid is put back on its edge. Counting u in the steps of the moment keeps the
    codes where they are as the steps change; with a perturbation in absolute terms, every change of a step
    undoes some of what the weights have learned.

    Every channel keeps the best it has visited, `start` included; where one step is shared by the tensor,
    the whole layer does.

    Parameters
    ----------
    start : StoredLayer
    error : OutputError
        Of weights without biases.
    settings : StraightThrough

    References
    ----------
    Straight-through slopes: Bengio, Léonard and Courville, "Estimating or propagating gradients through
    stochastic neurons for conditional computation", 2013. For post-training quantization: Hubara et al.,
    "Accurate post training quantization with small calibration sets", ICML 2021.
    """
    stored = start.dequantize()
    cut = start.cut or LayerCut(*stored.shape)
    fast = error.around(stored).single()
    best, least = start, stored.new_zeros(len(stored))
    first = [part.rows.steps for part in start.parts]
    latent = cut.to_rows(stored) / _unit(start, cut)
    stretch = [torch.zeros_like(steps) for steps in first]
    groups: list[dict[str, Any]] = [{"params": [latent]}, {"params": stretch}]
    adam = torch.optim.Adam(groups, eps=EPSILON)
    size = latent.new_ones(len(latent), 1)
    for iteration in range(settings.iterations + 1):
        steps = [own * change.exp() for own, change in zip(first, stretch, strict=True)]
        layer = with_steps(start, steps)
        unit = _unit(layer, cut)
        _put_back(latent, unit, layer)
        grid = LayerGrid(layer)
        layer = grid.stored(grid.nearest(latent * unit))
        moved = layer.dequantize() - stored
        found = sums_of_sharing(start, fast.of_rows(moved))
        better = found < least
        least = torch.where(better, found, least)
        best = chosen_channels(best, layer, better)
        decay = (1 + math.cos(math.pi * iteration / settings.iterations)) / 2
        adam.param_groups[0]["lr"] = settings.rate * decay
        adam.param_groups[1]["lr"] = settings.step_rate * decay
        slope = cut.to_rows(fast.slope(moved))
        if iteration == 0:
            for part in start.parts:
                # Of each option by itself: slopes of 8 bits are nothing beside those of 2.
                own = (slope[part.index] * unit[part.index]).square().mean().sqrt()
                size[part.index] = own.where(own > 0, 1.0)
        slope = slope / size
        latent.grad = slope * unit
        for part, change in zip(layer.parts, stretch, strict=True):
            own, codes = slope[part.index], part.rows.codes
            sums = torch.stack([cell_sums(own * each, part.rows.option) for each in codes])
            change.grad = sums * part.rows.steps
        adam.step()
    # Channels of different moments side by side: once more what 16 bits hold.
    return with_steps(best, [part.rows.steps for part in best.parts])


def _unit(layer: StoredLayer, cut: LayerCut) -> Tensor:
    """The finest step of every weight, shape (rows, row weights)."""
    unit = layer.parts[0].rows.steps.new_empty(cut.rows, cut.row_weights)
    for part in layer.parts:
        finest = part.rows.steps.abs().amin(0)
        unit[part.index] = _wide(finest, part.rows.option, len(part.index), cut.row_weights)
    return unit


def _put_back(latent: Tensor, unit: Tensor, layer: StoredLayer) -> None:
    """Clip weights, in units, to what the sums of their points reach."""
    for part in layer.parts:
        codes = codes_of(part.rows.option.bits)
        ends = codes[0] * part.rows.steps, codes[-1] * part.rows.steps
        own = unit[part.index]
        low, high = (
            _wide(limit, part.rows.option, *own.shape) / own
            for limit in (torch.minimum(*ends).sum(0), torch.maximum(*ends).sum(0))
        )
        latent[part.index] = latent[part.index].clamp(low, high)


def _wide(cells: Tensor, option: Option, rows: int, row_weights: int) -> Tensor:
    """Every weight's own number, from one for each cell."""
    each = cells if option.unit is not StepUnit.GROUP else cells.repeat_interleave(option.group, 1)
    return each.expand(rows, -1)[:, :row_weights] if each.shape[1] > 1 else each.expand(rows, row_weights)
