"""What GPTQ and AdaQuant make of a layer's weight under every option at once: weights for scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..allocator import LayerCut
from ..network import Activations, ActivationStore, Data, Layer, Network, rows
from ..quantizer import Option, Quantizer
from .damping import unseen_share
from .finalize import StoredLayer, StoredPart
from .gptq import Gptq, column_order, gptq_layer
from .gram import InputGram
from .layer_inputs import input_gram
from .output_error import OutputError
from .straight_through import StraightThrough, learn_layer
from .streams import Streams, walkable_blocks

__all__ = ["AdaQuantOptions", "GptqOptions"]


class GptqOptions:
    """Weights of single layers after GPTQ on the float network's inputs, all options in one recursion.

    GPTQ treats every row on its own, but for those that share a step, so that the rows of all options are
    rounded together, and a row's weights do not depend on the other options.

    Parameters
    ----------
    network : Network
    data : Data
        Calibration inputs.
    quantizer : Quantizer
        Of the steps at which rounding begins.
    settings : Gptq, optional
        Inputs are the float network's whatever it says, since nothing is quantized yet.
    unseen : bool
        Whether what the weights are off by is enlarged, by the root of `unseen_share`, so that scores on the
        samples that GPTQ was fitted to are as on others. It matters in front of a classifier, where there is
        one row an image: by their scores on their own 128 images the last two layers of MobileNetV1 would
        do with 2 bits.

    Notes
    -----
    The network is walked through as layers are asked for; asking in network order walks once. Of a network
    that is larger than the memory, whose scores ask for the last layers first, what enters the blocks is
    kept, so that this walks once too.
    """

    def __init__(
        self,
        network: Network,
        data: Data,
        quantizer: Quantizer,
        settings: Gptq | None = None,
        *,
        unseen: bool = False,
    ) -> None:
        self._network, self._data, self._quantizer, self._unseen = network, data, quantizer, unseen
        self._settings = replace(settings or Gptq(), sequential=False)
        self._blocks = walkable_blocks(network, data)
        self._store = ActivationStore(self._settings.memory_bytes)
        self._walk: Streams | None = None
        self._at = 0
        self._entering: dict[int, Activations] = {}

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
            weighted=self._settings.weighted,
        )
        settings, repeated = self._settings.of(layer), weight.repeat_interleave(count, 0)
        made = self._made(repeated, inputs, together, settings)
        if self._unseen:
            share = unseen_share(inputs, settings.damping, column_order(inputs, settings))
            made = repeated + share**0.5 * (made - repeated)
        return made.view(len(weight), count, -1)

    def _made(self, weight: Tensor, inputs: InputGram, together: StoredLayer, settings: Gptq) -> Tensor:
        """Weights of all rows under their options, from where rounding to nearest puts them."""
        return gptq_layer(weight, inputs, together, settings).dequantize()

    def _streams(self, layer: Layer) -> Streams:
        """The float network's values at the entry of the layer's block."""
        (wanted,) = (index for index, block in enumerate(self._blocks) if layer in block.layers)
        if self._walk is None or wanted < self._at:
            self._walk, self._at = Streams(self._network, self._data, self._store, with_float=False), -1
            # Layers behind this one have been asked for.
            self._entering = {at: values for at, values in self._entering.items() if at <= wanted}
            if self._entering:
                self._at = max(self._entering)
                self._walk.start_at(self._blocks[self._at].entry, self._entering[self._at])
        while self._at < wanted:
            self._at += 1
            self._walk.advance(self._blocks[self._at].entry)
            if self._network.is_streamed:
                self._entering[self._at] = self._walk.quantized
                self._store.rest()
        return self._walk


class AdaQuantOptions(GptqOptions):
    """Weights of single layers after AdaQuant on the float network's inputs, its parallel form.

    As `GptqOptions`, and from where GPTQ arrives codes and steps of all options are learned together.
    Biases stay, since scores are of weights.

    Parameters
    ----------
    network, data, quantizer, settings, unseen
        As for `GptqOptions`.
    learning : StraightThrough, optional

    References
    ----------
    Hubara et al., "Accurate post training quantization with small calibration sets", ICML 2021: its integer
    programme takes the loss of layers that were quantized in parallel.
    """

    def __init__(
        self,
        network: Network,
        data: Data,
        quantizer: Quantizer,
        settings: Gptq | None = None,
        learning: StraightThrough | None = None,
        *,
        unseen: bool = False,
    ) -> None:
        super().__init__(network, data, quantizer, settings, unseen=unseen)
        self._learning = learning or StraightThrough()

    def _made(self, weight: Tensor, inputs: InputGram, together: StoredLayer, settings: Gptq) -> Tensor:
        start = gptq_layer(weight, inputs, together, settings)
        return learn_layer(start, OutputError.of(inputs, weight), self._learning).dequantize()
