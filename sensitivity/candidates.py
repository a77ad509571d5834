"""What every option makes of a layer's weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from ..allocator import LayerCut, fitting_cut
from ..errors import InputError
from ..network import Layer, Network, rows
from ..quantizer import Option, Quantizer

__all__ = ["OptionWeights", "check_options", "cut_of", "layer_options", "perturbations"]

OptionWeights: TypeAlias = Callable[[Layer, Sequence[Option], LayerCut], Tensor]
"""From a layer, options that fit it, and its cut to what it weighs then, (channels, options, fan_in)."""


def cut_of(layer: Layer, cut: str | None) -> LayerCut:
    """How a layer is cut where strips of inputs are scored; by output channel where `cut` does not fit it."""
    shape = (layer.channels, layer.fan_in) if layer.transposed else layer.shape
    return LayerCut.of(shape, fitting_cut(shape, cut))


def check_options(network: Network, options: Sequence[Option], cut: str | None = None) -> None:
    """Refuse options that no layer can take, see `layer_options`.

    Raises
    ------
    InputError
        Names them, and the widest row that there is.
    """
    widest = max(cut_of(layer, cut).row_weights for layer in network.layers)
    unfit = [str(option) for option in options if option.group > widest]
    if unfit:
        raise InputError(
            f"no layer can take {', '.join(unfit)}: none has more than {widest} weights per "
            f"{'strip and ' if cut else ''}output channel, which a group must fit into; leave such options "
            "out, or give smaller groups"
        )


def layer_options(layer: Layer, options: Sequence[Option], cut: str | None = None) -> list[int]:
    """Indices of the options that the layer can take: a group of weights must fit into a row.

    Parameters
    ----------
    cut : str, optional
        How linear layers are cut, such as ``inputs:64``, see `LayerCut`.

    Raises
    ------
    InputError
        None fits; names the layer.
    """
    weights = cut_of(layer, cut).row_weights
    fitting = [index for index, option in enumerate(options) if option.group <= weights]
    if not fitting:
        what = "output channel" if weights == layer.fan_in else "strip and output channel"
        raise InputError(
            f"layer '{layer.name}' has {weights} weights per {what}, fewer than a group of "
            f"every option ({', '.join(map(str, options))}); add an option without groups, such as w4"
        )
    return fitting


def perturbations(
    network: Network,
    layer: Layer,
    options: Sequence[Option],
    quantizer: Quantizer,
    cut: str | None = None,
    weights: OptionWeights | None = None,
) -> Tensor:
    """``dW(o) = dequantized W - W``, shape (channels, options, fan_in); 0 for options that do not fit.

    Parameters
    ----------
    weights : callable, optional
        Gives the dequantized weights; default: rounded to nearest by the quantizer.
    """
    weight = rows(layer, network.weight(layer)).to(torch.float32)
    strips, fitting = cut_of(layer, cut), layer_options(layer, options, cut)
    deltas = torch.zeros(layer.channels, len(options), layer.fan_in, device=weight.device)
    if weights is not None:
        deltas[:, fitting] = weights(layer, [options[index] for index in fitting], strips) - weight[:, None]
        return deltas
    for index in fitting:
        stored = quantizer.quantize(strips.to_rows(weight), options[index]).dequantize()
        deltas[:, index] = strips.from_rows(stored) - weight
    return deltas
