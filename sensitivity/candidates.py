"""What every option makes of a layer's weight."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError
from ..network import Layer, Network, rows
from ..quantizer import Option, Quantizer

__all__ = ["layer_options", "perturbations"]


def layer_options(layer: Layer, options: Sequence[Option]) -> list[int]:
    """Indices of the options that the layer can take: a group of weights must fit into a channel.

    Raises
    ------
    InputError
        None fits; names the layer.
    """
    fitting = [index for index, option in enumerate(options) if option.group <= layer.fan_in]
    if not fitting:
        raise InputError(
            f"layer '{layer.name}' has {layer.fan_in} weights per output channel, fewer than a group of "
            f"every option ({', '.join(map(str, options))}); add an option without groups, such as w4"
        )
    return fitting


def perturbations(network: Network, layer: Layer, options: Sequence[Option], quantizer: Quantizer) -> Tensor:
    """``dW(o) = dequantized W - W``, shape (channels, options, fan_in); 0 for options that do not fit."""
    weight = rows(layer, network.weight(layer)).to(torch.float32)
    deltas = torch.zeros(layer.channels, len(options), layer.fan_in, device=weight.device)
    for index in layer_options(layer, options):
        deltas[:, index] = quantizer.quantize(weight, options[index]).dequantize() - weight
    return deltas
