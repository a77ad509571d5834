"""What learned rounding makes of a block's weights under every option: weights for scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..allocator import LayerCut, fitting_cut
from ..network import ActivationStore, Data, Layer, Network, rows
from ..quantizer import Option, Quantizer
from .finalize import StoredLayer, StoredPart, layer_shapes
from .rounding import LearnedRounding
from .streams import Streams, walkable_blocks
from .units import Granularity, joined_blocks, units_of

__all__ = ["BlockOptions"]


class BlockOptions:
    """Weights of layers whose whole block was reconstructed at one option, on the float network's inputs.

    In a layer that an option does not fit, as its groups are too large, the first that does stands for it
    while the block learns.

    Parameters
    ----------
    network : Network
    data : Data
        Calibration inputs.
    quantizer : Quantizer
        Of the steps at which rounding begins.
    options : sequence of Option
        All that will be asked for.
    method : LearnedRounding
        Its granularity is taken to be the block.
    cut : str, optional
        As for scores, ``inputs:64``.

    Notes
    -----
    The network is walked through as layers are asked for; asking in network order walks once.

    References
    ----------
    Li et al., "BRECQ", ICLR 2021, section 3.4: losses for mixed precision are taken after reconstruction.
    """

    def __init__(
        self,
        network: Network,
        data: Data,
        quantizer: Quantizer,
        options: Sequence[Option],
        method: LearnedRounding,
        cut: str | None = None,
    ) -> None:
        network = network.widened()
        data = data.taken_by(network)
        self._network, self._data, self._quantizer = network, data, quantizer
        self._options, self._method, self._cut = tuple(options), method, cut
        self._shapes = layer_shapes(network)
        self._blocks = joined_blocks(network, walkable_blocks(network, data), Granularity.BLOCK)
        self._walk: Streams | None = None
        self._at = -1
        self._made: dict[tuple[str, Option], StoredLayer] = {}

    def __call__(self, layer: Layer, options: Sequence[Option], cut: LayerCut) -> Tensor:
        """Weights of the layer under options that fit it, shape (channels, options, fan_in)."""
        (wanted,) = (index for index, block in enumerate(self._blocks) if layer in block.layers)
        if wanted != self._at:
            self._reconstruct(wanted)
        return torch.stack([self._made[layer.name, option].dequantize() for option in options], 1)

    def _reconstruct(self, wanted: int) -> None:
        """Learn one block at every option; weights of other blocks are forgotten."""
        if self._walk is None or wanted < self._at:
            store = ActivationStore(self._method.memory_bytes)
            self._walk = Streams(self._network, self._data, store, with_float=True)
        block, self._at, self._made = self._blocks[wanted], wanted, {}
        self._walk.advance(block.entry)
        for option in self._options:
            nearest = {layer.name: self._nearest(layer, option) for layer in block.layers}
            for number, layers in enumerate(units_of(block, Granularity.BLOCK)):
                _, found = self._method.learn_unit(self._walk, block, layers, nearest, number)
                self._made |= {(stored.name, option): stored for stored in found.layers}
            # The next option, and the blocks to come, see the float network.
            self._walk.replaced = {}

    def _nearest(self, layer: Layer, option: Option) -> StoredLayer:
        shape = self._shapes[layer.name]
        cut = LayerCut.of(shape, fitting_cut(shape, self._cut))
        fitting = [each for each in (option, *self._options) if each.group <= cut.row_weights]
        weight = cut.to_rows(rows(layer, self._network.weight(layer)).to(torch.float32))
        index = torch.arange(len(weight), device=weight.device)
        return StoredLayer(
            layer.name, (StoredPart(index, self._quantizer.quantize(weight, fitting[0])),), cut
        )
