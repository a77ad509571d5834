"""A walk through the network, block after block, with what enters each block in both networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ..errors import InputError
from ..network import (
    Activations,
    ActivationStore,
    Block,
    Data,
    Layer,
    Network,
    SampleAxis,
    activation_key,
    different_samples,
    from_rows,
    is_by_sample,
    sample_axes,
)
from .finalize import StoredLayer
from .position_weights import position_weights
from .region import Region, region_between

__all__ = ["Streams", "walkable_blocks"]


@dataclass
class Streams:
    """The values at one cut of the network, as the quantized and as the float network have them.

    Attributes
    ----------
    network : Network
    data : Data
    store : ActivationStore
    with_float : bool
        Whether the float network's values are kept too.
    replaced : dict
        The tensors of the quantized network as far as they are known, and read behind the cut; those that
        quantize values from the start.
    entry : str
        The node or input at the cut.
    quantized, floating : Activations
        Values there; the same object until the two networks differ, and where `with_float` is not set.
    """

    network: Network
    data: Data
    store: ActivationStore
    with_float: bool
    replaced: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.network.schedule.inputs) != 1:
            raise InputError(
                f"the network takes {len(self.network.schedule.inputs)} inputs; this method needs a network "
                "of one input, round to nearest instead"
            )
        self.entry: str = self.network.schedule.inputs[0]
        inputs = self.data.inputs
        self.quantized = self.floating = Activations(inputs)

    @cached_property
    def axes(self) -> dict[str, SampleAxis]:
        """Where the samples are in what enters layers, if not first; see `sample_axes`."""
        return sample_axes(self.network, self.data)

    @cached_property
    def position_weights(self) -> dict[str, Tensor]:
        """What positions count, see `position_weights`."""
        return position_weights(self.network, self.data)

    def start_at(self, entry: str, values: Activations) -> None:
        """Begin at a cut whose value is known, the same in both networks."""
        self.entry, self.quantized, self.floating = entry, values, values

    def inputs(self, samples: Tensor | slice) -> Tensor:
        """The network's own inputs of some samples."""
        return self.data.inputs[samples].to(self.network.device)

    def region(self, exit_: str) -> Region:
        """What lies between the cut and a later value."""
        return region_between(self.network, self.entry, exit_)

    def batch(self, region: Region, part: slice) -> tuple[Tensor, Tensor]:
        """The value at a region's exit for some samples: of the quantized and of the float network."""
        inputs = self.inputs(part)
        with torch.inference_mode():
            value = region.run(self.moved(self.quantized, part), inputs, self.replaced)
            if not self.with_float or (self.quantized is self.floating and not self._changes(region)):
                return value, value
            return value, region.run(self.moved(self.floating, part), inputs)

    def at(self, region: Region) -> tuple[Activations, Activations]:
        """The value at a region's exit for all samples: of the quantized and of the float network."""
        samples = len(self.data.inputs)
        differ = self.with_float and (self.quantized is not self.floating or self._changes(region))
        quantized = self.store.compute(samples, lambda part: self._run(region, part, self.replaced))
        if not differ:
            return quantized, quantized
        return quantized, self.store.compute(samples, lambda part: self._run(region, part, None))

    def advance(self, exit_: str) -> None:
        """Move the cut to a later value."""
        if exit_ == self.entry:
            return
        self.quantized, self.floating = self.at(self.region(exit_))
        self.entry = exit_
        # What no later step reads need not stay, nor what quantizes values that are there.
        schedule = self.network.schedule
        done = schedule.position[exit_]
        last = {activation_key(value): place for value, place in schedule.position.items()}
        last |= schedule.last_read
        for name in [name for name in self.replaced if last.get(name, done) <= done]:
            del self.replaced[name]

    def replace(self, layer: Layer, stored: StoredLayer) -> None:
        """Let a layer join the quantized network."""
        like = self.network.outlines[layer.weight]
        self.replaced[layer.weight] = from_rows(layer, stored.dequantize()).to(
            self.network.device, like.dtype
        )

    def _run(self, region: Region, part: slice, replaced: Mapping[str, Tensor] | None) -> Tensor:
        values = self.floating if replaced is None else self.quantized
        with torch.inference_mode():
            return region.run(self.moved(values, part), self.inputs(part), replaced)

    def moved(self, values: Activations, part: slice) -> Tensor:
        """Activations of some samples, where the network is."""
        return values.take(part).to(self.network.device)

    def _changes(self, region: Region) -> bool:
        return any(region.reads(name) for name in self.replaced)


def walkable_blocks(network: Network, data: Data) -> tuple[Block, ...]:
    """The network's blocks, joined where the value between two of them has not its samples first.

    Where the value at the first one's entry has not, that block begins at the network's input.
    """
    if len(network.schedule.inputs) != 1:
        return network.blocks
    pair = different_samples(data.inputs).to(network.device)
    inputs = [pair[:1], pair, pair[[0, 1, 0]]]
    start, entry = network.schedule.inputs[0], network.blocks[0].entry
    first = region_between(network, start, entry)
    with torch.inference_mode():
        values = [first.run(each, each) for each in inputs]
    found: list[Block] = []
    open_ = None if is_by_sample(*values) else Block(start, entry, ())
    for each in network.blocks:
        region = region_between(network, each.entry, each.exit)
        with torch.inference_mode():
            values = [region.run(*pair) for pair in zip(values, inputs, strict=True)]
        block = each if open_ is None else Block(open_.entry, each.exit, (*open_.layers, *each.layers))
        if block.exit == network.schedule.output or (region.reads_entry and is_by_sample(*values)):
            found.append(block)
            open_ = None
        else:
            open_ = block
    return tuple(found if open_ is None else [*found, open_])
