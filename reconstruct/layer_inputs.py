"""What enters one layer on calibration samples, gathered into the sums that its output error depends on."""

from __future__ import annotations

import math

import torch

from ..errors import InputError, NotFiniteError
from ..network import ACTIVATION_BATCH, SAMPLES_FIRST, Layer
from .gram import InputGram, position_count
from .streams import Streams

__all__ = ["check_positions", "input_gram"]

LEAST_POSITIONS = 2**14
MOST_POSITIONS = 10**9


def check_positions(method: str, positions: int) -> None:
    """Refuse a number of positions per weight that is none."""
    if not 1 <= positions <= MOST_POSITIONS:
        raise InputError(
            f"{method} has {positions} positions per weight; it takes 1 to {MOST_POSITIONS:,}, such as 32"
        )


def input_gram(
    streams: Streams,
    layer: Layer,
    samples: range,
    *,
    cross: bool,
    positions: int,
    with_one: bool = False,
    levelled: bool = True,
) -> InputGram:
    """Products of the inputs of all uses of a layer in the block at the cut of the streams.

    Where a layer looks rows up, nothing is multiplied: such uses add nothing.

    Parameters
    ----------
    samples : range
        Consecutive samples that are looked at.
    cross : bool
        Whether the products with the float network's inputs are wanted too; needs streams `with_float`.
    positions : int
        Output positions (pixels, tokens) per weight of an output channel; where there are more, so many are
        drawn, equally many of every sample. Neighbouring positions say much the same.
    with_one : bool
        Whether an input that is always 1 is added, see `InputGram`.
    levelled : bool
        Whether positions of outlying energy count less, see `InputGram`.

    Raises
    ------
    NotFiniteError
        What enters the layer is NaN or infinite, or its squares are.
    """
    schedule = streams.network.schedule
    gram = InputGram.empty(
        layer.groups,
        layer.fan_in,
        streams.network.device,
        cross=cross,
        with_one=with_one,
        levelled=levelled,
    )
    wanted = max(LEAST_POSITIONS, positions * layer.fan_in) / len(samples) / max(1, len(layer.products))
    generator = torch.Generator().manual_seed(0)
    for node in layer.products:
        step = schedule.steps[schedule.position[node]]
        assert step.call is not None
        assert step.source is not None
        region = streams.region(step.source)
        for start in range(samples.start, samples.stop, ACTIVATION_BATCH):
            part = slice(start, min(start + ACTIVATION_BATCH, samples.stop))
            quantized, floating = streams.batch(region, part)
            rows = part.stop - part.start
            # A convolution of one sample may come without the axis of samples.
            if step.call.stride and quantized.ndim == len(step.call.stride) + 1:
                quantized, floating = quantized[None], floating[None]
            elif not step.call.stride and quantized.numel():
                # Tokens that are folded into the axis of samples, or before it, are positions too.
                axis = streams.axes.get(node, SAMPLES_FIRST)
                moved = [axis.first(value, rows) for value in (quantized, floating)]
                quantized, floating = (
                    value if first is None else first.reshape(rows, -1, layer.fan_in)
                    for value, first in zip((quantized, floating), moved, strict=True)
                )
            if quantized.numel() == 0:
                continue
            rows_per_sample = len(quantized) / rows
            count, few = position_count(step.call, quantized), math.ceil(wanted / rows_per_sample)
            picked = torch.randperm(count, generator=generator)[:few] if few < count else None
            gram.add(step.call, quantized, floating if cross else None, picked)
    if not gram.is_finite:
        raise NotFiniteError(
            f"what enters layer '{layer.name}' on data '{streams.data.name}' is NaN or infinite, or too "
            "large to be squared; check that the inputs are scaled as in training, or give that layer and "
            "those before it more bits"
        )
    return gram
