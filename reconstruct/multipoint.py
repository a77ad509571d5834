"""Multipoint quantization as published: more points for the output channels that lose most."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..allocator import Complexity, LayerPlan, Plan, assignment_digest, parse_budget
from ..errors import InfeasibleError, InputError
from ..network import ActivationStore, Data, Network, rows
from ..quantizer import Option, PointFit, Quantizer, StepUnit, stored_bits
from .finalize import layer_shapes
from .layer_inputs import input_gram
from .streams import Streams, walkable_blocks

__all__ = ["multipoint_plan"]

MOST_POINTS = 8


def multipoint_plan(
    network: Network,
    data: Data,
    base: Option,
    most_points: int,
    budget: str,
    *,
    fixed: Mapping[str, Option] | None = None,
    positions: int = 32,
    memory_bytes: int = 2**31,
) -> Plan:
    """A plan of one width, in which the output channels of large error are sums of several points.

    With q_n the greedy sum of n points for an output channel w of any layer, and x the inputs of the layer in
    the float network, the channel has

        points = min { n : mean (q_n x - w x)^2 <= threshold },    at most `most_points`.

    One threshold holds for the whole network. It is the least at which the plan is within the budget, with
    everything counted that is stored; found by bisection over all errors that occur.

    Parameters
    ----------
    network : Network
    data : Data
        Calibration inputs.
    base : Option
        One point, with a step per channel or group, such as ``w4``.
    most_points : int
        2 to 8.
    budget : str
        Of the size, such as ``4.5b`` or ``300KiB``; see `parse_budget`.
    fixed : mapping of str to Option, optional
        Layers that have an option of their own whatever their errors, such as the first and the last.
    positions : int
        Output positions of a layer that are looked at, as `Gptq` has them.
    memory_bytes : int
        Bound on the activations that are kept in memory.

    Returns
    -------
    Plan
        Per channel, for greedy points; without certificate or predicted loss, since nothing was scored.

    Raises
    ------
    InputError
        A base or a number of points that is none, or a group that is larger than a layer's rows.
    InfeasibleError
        The base alone is over the budget.

    References
    ----------
    Liu et al., "Post-training quantization with multiple points: mixed precision without mixed precision",
    AAAI 2021.
    """
    if base.points != 1 or base.unit is StepUnit.TENSOR:
        raise InputError(
            f"multipoint quantization has the base {base}; it is one point with steps of its own for every "
            f"channel, such as w{base.bits}"
        )
    if not 2 <= most_points <= MOST_POINTS:
        raise InputError(
            f"multipoint quantization has at most {most_points} points; it takes 2 to {MOST_POINTS}"
        )
    options = tuple(replace(base, points=count) for count in range(1, most_points + 1))
    errors = _channel_errors(network, data, options, fixed or {}, positions, memory_bytes)
    size = _Size(network, options, fixed or {})
    limit = parse_budget(budget).bits(size.weight_count, size.fixed_bits, network.float_bits)
    # Ascending: the first gives all channels all points, the last leaves them at one.
    free = [
        error for layer, error in zip(network.layers, errors, strict=True) if layer.name not in size.fixed
    ]
    thresholds = [-1.0, *sorted({value for error in free for value in error[:-1].flatten().tolist()})]
    least, most = (size.weights(_points(errors, thresholds[end])) for end in (-1, 0))
    if least > limit:
        raise InfeasibleError(
            f"the budget {budget} allows {limit:,} bits for the quantized weights; {base} for all channels "
            f"that are free takes {least:,} and {options[-1]} {most:,}. Raise the budget, or take a base of "
            "fewer bits"
        )
    over, fits = -1, len(thresholds) - 1
    while fits - over > 1:
        middle = (fits + over) // 2
        if size.weights(_points(errors, thresholds[middle])) <= limit:
            fits = middle
        else:
            over = middle
    return size.plan(_points(errors, thresholds[fits]), budget)


def _channel_errors(
    network: Network,
    data: Data,
    options: Sequence[Option],
    fixed: Collection[str],
    positions: int,
    memory_bytes: int,
) -> list[Tensor]:
    """Mean squared error of every output channel for each number of points, (points, channels) per layer.

    0 for layers that have an option of their own.
    """
    quantizer = Quantizer(fit=PointFit.GREEDY)
    found: dict[str, Tensor] = {}
    with ActivationStore(memory_bytes) as store:
        streams = Streams(network, data, store, with_float=False)
        for block in walkable_blocks(network, data):
            streams.advance(block.entry)
            for layer in block.layers:
                if layer.name in fixed:
                    found[layer.name] = torch.zeros(len(options), layer.channels)
                    continue
                samples = range(len(data.inputs))
                inputs = input_gram(
                    streams,
                    layer,
                    samples,
                    cross=False,
                    positions=positions,
                    with_one=True,
                    levelled=False,
                    weighted=False,
                )
                # The input that is always 1 counts the positions. A row that is looked up has none.
                gram = torch.eye(layer.fan_in, dtype=torch.float64, device=network.device)[None]
                if layer.products:
                    gram = inputs.gram[:, :-1, :-1] / inputs.gram[:, -1:, -1:]
                weight, errors = rows(layer, network.weight(layer)), []
                for option in options:
                    try:
                        delta = quantizer.quantize(weight, option).dequantize() - weight
                    except InputError as error:
                        raise InputError(f"layer '{layer.name}': {error}") from error
                    wide = delta.double().view(layer.groups, -1, layer.fan_in)
                    errors.append(((wide @ gram) * wide).sum(2).flatten())
                found[layer.name] = torch.stack(errors)
    return [found[layer.name] for layer in network.layers]


def _points(errors: Sequence[Tensor], threshold: float) -> list[list[int]]:
    """Points of every channel of every layer: the fewest whose error is at most the threshold."""
    counts = []
    for error in errors:
        enough = error <= threshold
        enough[-1] = True
        counts.append((enough.to(torch.int8).argmax(0) + 1).tolist())
    return counts


@dataclass(frozen=True)
class _Size:
    """What a choice of points weighs, and the document of it."""

    network: Network
    options: Sequence[Option]
    fixed: Mapping[str, Option]

    @property
    def option_set(self) -> tuple[Option, ...]:
        """All options that may occur, each once."""
        return tuple(dict.fromkeys((*self.options, *self.fixed.values())))

    def chosen(self, name: str, counts: Sequence[int]) -> list[Option]:
        """The option of every channel of a layer."""
        if name in self.fixed:
            return [self.fixed[name]] * len(counts)
        return [self.options[count - 1] for count in counts]

    @property
    def weight_count(self) -> int:
        return sum(layer.channels * layer.fan_in for layer in self.network.layers)

    @property
    def fixed_bits(self) -> int:
        weights = {layer.weight for layer in self.network.layers}
        others = [tensor for name, tensor in self.network.outlines.items() if name not in weights]
        return sum(8 * tensor.numel() * tensor.element_size() for tensor in others)

    def layers(self, points: Sequence[Sequence[int]]) -> list[int]:
        """Bits of every layer."""
        return [
            stored_bits(self.chosen(layer.name, counts), layer.fan_in, len(self.option_set))
            for layer, counts in zip(self.network.layers, points, strict=True)
        ]

    def weights(self, points: Sequence[Sequence[int]]) -> int:
        """Bits of all layers."""
        return sum(self.layers(points))

    def plan(self, points: Sequence[Sequence[int]], budget: str) -> Plan:
        """The document."""
        shapes = layer_shapes(self.network)
        layers = tuple(
            LayerPlan.from_strips(
                layer.name,
                shapes[layer.name],
                [str(option) for option in self.chosen(layer.name, counts)],
                size_bits=size_bits,
                mean_bits=size_bits / (layer.channels * layer.fan_in),
            )
            for layer, counts, size_bits in zip(self.network.layers, points, self.layers(points), strict=True)
        )
        weights = sum(layer.size_bits for layer in layers)
        return Plan(
            unit="channel",
            budgets=(budget,),
            complexity=Complexity(
                size_bits=weights + self.fixed_bits,
                average_bits=weights / self.weight_count,
                fixed_bits=self.fixed_bits,
                float_bits=self.network.float_bits,
                weight_count=self.weight_count,
            ),
            profile="none: multipoint by output error",
            options=tuple(map(str, self.option_set)),
            quantizer=Quantizer(fit=PointFit.GREEDY).settings(),
            assignment=assignment_digest(layers),
            versions={},
            layers=layers,
        )
