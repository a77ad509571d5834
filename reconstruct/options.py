"""What GPTQ makes of a layer's weight under every option at once: weights for scores, not for storing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..allocator import LayerCut
from ..network import ActivationStore, Data, Layer, Network, rows
from ..quantizer import Option, Quantizer
from .finalize import StoredLayer, StoredPart
from .gptq import Gptq, gptq_layer
from .layer_inputs import input_gram
from .streams import Streams, walkable_blocks

__all__ = ["GptqOptions"]


class GptqOptions:
    """Weights of single layers after GPTQ on the float network's inputs, all options in one recursion.

    GPTQ treats every row on its own, so that the rows of all options are rounded together, and a row's
    weights do not depend on the options of the other rows.

    Parameters
    ----------
    network : Network
    data : Data
        Calibration inputs.
    quantizer : Quantizer
        Of the steps, which are those of nearest rounding.
    settings : Gptq, optional
        Inputs are the float network's whatever it says, since nothing is quantized yet.

    Notes
    -----
    The network is walked through as layers are asked for; asking in network order walks once.
    """

    name = "gptq"

    def __init__(
        self, network: Network, data: Data, quantizer: Quantizer, settings: Gptq | None = None
    ) -> None:
        self._network, self._data, self._quantizer = network, data, quantizer
        self._settings = replace(settings or Gptq(), sequential=False)
        self._blocks = walkable_blocks(network, data)
        self._walk: Streams | None = None
        self._at = 0

    def __call__(self, layer: Layer, options: Sequence[Option], cut: LayerCut) -> Tensor:
        """Weights of the layer under options that fit it, shape (channels, options, fan_in)."""
        weight = rows(layer, self._network.weight(layer)).to(torch.float32)
        matrix, count = cut.to_rows(weight), len(options)
        place = torch.arange(len(matrix), device=weight.device) * count
        parts = tuple(
            StoredPart(place + column, self._quantizer.quantize(matrix, option))
            for column, option in enumerate(options)
        )
        together = StoredLayer(layer.name, parts, replace(cut, channels=cut.channels * count))
        if not layer.products:
            return together.dequantize().view(len(weight), count, -1)
        inputs = input_gram(
            self._streams(layer),
            layer,
            range(len(self._data)),
            cross=False,
            positions=self._settings.positions,
        )
        rounded = gptq_layer(weight.repeat_interleave(count, 0), inputs, together, self._settings.of(layer))
        return rounded.dequantize().view(len(weight), count, -1)

    def _streams(self, layer: Layer) -> Streams:
        """The float network's values at the entry of the layer's block."""
        (wanted,) = (index for index, block in enumerate(self._blocks) if layer in block.layers)
        if self._walk is None or wanted < self._at:
            store = ActivationStore(self._settings.memory_bytes)
            self._walk = Streams(self._network, self._data, store, with_float=False)
        self._walk.advance(self._blocks[wanted].entry)
        self._at = wanted
        return self._walk
