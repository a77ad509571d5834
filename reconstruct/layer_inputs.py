"""What enters one layer on calibration samples, gathered into the sums that its output error depends on."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import InputError, NotFiniteError
from ..network import ACTIVATION_BATCH, SAMPLES_FIRST, Layer, SampleAxis
from .gram import InputGram, position_count
from .streams import Streams

__all__ = ["check_positions", "drawn_positions", "input_gram"]

LEAST_POSITIONS = 2**16
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
    weighted: bool = True,
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
        drawn, the same of all samples of a batch and those that count more more often. Neighbouring
        positions say much the same.
    with_one : bool
        Whether an input that is always 1 is added, see `InputGram`.
    levelled : bool
        Whether positions of outlying energy count less, see `InputGram`.
    weighted : bool
        Whether positions count by what an error there does to the network's output, see `position_weights`.

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
            rows, axis = part.stop - part.start, streams.axes.get(node, SAMPLES_FIRST)
            # A convolution of one sample may come without the axis of samples.
            if step.call.stride and quantized.ndim == len(step.call.stride) + 1:
                quantized, floating = quantized[None], floating[None]
            elif not step.call.stride and quantized.numel():
                # Tokens that are folded into the axis of samples, or before it, are positions too.
                moved = [axis.first(value, rows) for value in (quantized, floating)]
                quantized, floating = (
                    value if first is None else first.reshape(rows, -1, layer.fan_in)
                    for value, first in zip((quantized, floating), moved, strict=True)
                )
            if quantized.numel() == 0:
                continue
            rows_per_sample = len(quantized) / rows
            count, few = position_count(step.call, quantized), math.ceil(wanted / rows_per_sample)
            weights = streams.position_weights.get(node) if weighted else None
            own = None if weights is None else _rows_of(weights[part], len(quantized), count, axis)
            own = torch.ones(len(quantized), count) if own is None else own.float()
            picked = None
            if few < count:
                picked, chances = drawn_positions(own.mean(0), few, generator)
                own = own[:, picked] / chances
            gram.add(step.call, quantized, floating if cross else None, picked, own.to(quantized.device))
    if not gram.is_finite:
        raise NotFiniteError(
            f"what enters layer '{layer.name}' on data '{streams.data.name}' is NaN or infinite, or too "
            "large to be squared; check that the inputs are scaled as in training, or give that layer and "
            "those before it more bits"
        )
    return gram


def _rows_of(weights: Tensor, rows: int, count: int, axis: SampleAxis) -> Tensor | None:
    """The weights of a batch as the rows of what enters have their positions; None where they are not so."""
    if weights.numel() != rows * count or (len(weights) != rows and not axis.leading):
        return None
    # Frames that are folded into the samples are rows of their own.
    return weights.reshape(rows, count)


def drawn_positions(weights: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Positions drawn with chances in proportion to their weights, and the chance of each.

    A position whose chance would be above 1 is taken for sure. A sum over those that are drawn, each over its
    chance, is on average the sum over all: systematic sampling of a random order.

    Parameters
    ----------
    weights : Tensor, shape (positions,)
        Positive.
    count : int
        How many are wanted, fewer than there are.

    Returns
    -------
    index, chances : Tensor, shape (about count,)

    References
    ----------
    Madow, "On the theory of systematic sampling, II", Annals of Mathematical Statistics 20, 1949.
    """
    chances, sure = torch.zeros_like(weights), torch.zeros_like(weights, dtype=torch.bool)
    while True:
        rest = weights.where(~sure, 0.0)
        chances = torch.where(sure, 1.0, rest * ((count - int(sure.sum())) / rest.sum()))
        if not bool(((chances > 1) & ~sure).any()):
            break
        sure |= chances >= 1
    order = torch.randperm(len(weights), generator=generator)
    ends = chances[order].double().cumsum(0)
    places = (ends - torch.rand((), generator=generator, dtype=torch.float64)).ceil()
    taken = places.diff(prepend=torch.zeros(1, dtype=torch.float64)) > 0
    index = order[taken].sort().values
    return index, chances[index]
