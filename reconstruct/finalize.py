"""Final integer weights of a plan by rounding to the nearest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..allocator import LayerCut, LayerPlan, Plan, check_layers
from ..errors import InputError
from ..network import Layer, Network, activation_key, from_rows, rows
from ..quantizer import Option, QuantizedRows, Quantizer, StepUnit, parse_option
from .values import plan_values

__all__ = ["Finalized", "StoredLayer", "StoredPart", "finalize_nearest", "layer_shapes", "value_tensors"]


@dataclass(frozen=True)
class StoredPart:
    """The rows of a layer that share an option.

    Attributes
    ----------
    index : Tensor, shape (n,), int64
        Which of the layer's rows, ascending: output channels, unless the layer is cut otherwise.
    rows : QuantizedRows
        Their codes and steps.
    """

    index: Tensor
    rows: QuantizedRows


@dataclass(frozen=True)
class StoredLayer:
    """The integer codes and steps of one layer, grouped by option.

    Attributes
    ----------
    name : str
    parts : tuple of StoredPart
        Every row in exactly one of them.
    cut : LayerCut, optional
        What the rows are; None: the output channels.
    """

    name: str
    parts: tuple[StoredPart, ...]
    cut: LayerCut | None = None

    def dequantize(self) -> Tensor:
        """The weight, shape (channels, fan_in), float32."""
        values = [part.rows.dequantize() for part in self.parts]
        stored = values[0].new_empty(sum(map(len, values)), values[0].shape[1])
        for part, value in zip(self.parts, values, strict=True):
            stored[part.index] = value
        return stored if self.cut is None else self.cut.from_rows(stored)


@dataclass(frozen=True)
class Finalized:
    """A plan carried out.

    Attributes
    ----------
    layers : tuple of StoredLayer
        In network order.
    biases : dict of str to Tensor
        Replaced biases by tensor name; empty without a correction.
    values : dict of str to Tensor
        What quantizes values of the network, by their name; empty where all stay float.
    """

    layers: tuple[StoredLayer, ...]
    biases: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)

    def tensors(self, network: Network) -> dict[str, Tensor]:
        """What replaces the network's tensors: dequantized weights, corrected biases, and low-bit values."""
        stored = {layer.name: layer for layer in self.layers}
        replaced = {
            layer.weight: from_rows(layer, stored[layer.name].dequantize()).to(network.weight(layer))
            for layer in network.layers
        }
        replaced |= {name: bias.to(network.device) for name, bias in self.biases.items()}
        return replaced | value_tensors(self.values)


def value_tensors(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What quantizes values, by the names that changed networks have for it."""
    return {activation_key(name): entry for name, entry in values.items()}


def layer_shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """Shape of every layer's weight with the output channels first, as documents state it."""
    return {
        layer.name: (layer.channels, layer.fan_in) if layer.transposed else tuple(layer.shape)
        for layer in network.layers
    }


def finalize_nearest(
    network: Network,
    plan: Plan,
    *,
    on_layer: Callable[[int, int], None] | None = None,
) -> Finalized:
    """Round every weight to the nearest code (or sum of codes) of its option.

    Parameters
    ----------
    plan : Plan
        Its quantizer says how steps are searched and points fitted.
    on_layer : callable, optional
        Told (layers done, layers in all).

    Raises
    ------
    InputError
        The plan misses or invents a layer, or gives a layer an option that does not fit it.
    """
    check_layers(plan, layer_shapes(network))
    quantizer = Quantizer.from_settings(plan.quantizer)
    planned = {layer.name: layer for layer in plan.layers}
    stored = []
    for index, layer in enumerate(network.layers):
        stored.append(_store(network, layer, planned[layer.name], quantizer))
        if on_layer is not None:
            on_layer(index + 1, len(network.layers))
    return Finalized(tuple(stored), values=plan_values(plan))


def _store(network: Network, layer: Layer, planned: LayerPlan, quantizer: Quantizer) -> StoredLayer:
    chosen, cut = planned.strip_options(), planned.layer_cut()
    weight = cut.to_rows(rows(layer, network.weight(layer)))
    parts = []
    for text in dict.fromkeys(chosen):
        option = _fitting(planned, text)
        strips = [index for index, other in enumerate(chosen) if other == text]
        index = torch.tensor(cut.strip_rows(strips), device=weight.device)
        parts.append(StoredPart(index, quantizer.quantize(weight[index], option)))
    return StoredLayer(layer.name, tuple(parts), cut)


def _fitting(layer: LayerPlan, text: str) -> Option:
    try:
        option = parse_option(text)
    except InputError as error:
        raise InputError(f"layer '{layer.name}': {error}") from error
    row_weights, what = layer.layer_cut().row_weights, "strip" if layer.cut else "channel"
    if option.group > row_weights:
        raise InputError(
            f"layer '{layer.name}' has {row_weights} weights per {what}; option {text} needs at least "
            f"{option.group}"
        )
    if option.unit is StepUnit.TENSOR and layer.option is None:
        raise InputError(
            f"layer '{layer.name}': option {text} has one step for the whole tensor and cannot be given to "
            f"some {what}s only; use it for the whole layer"
        )
    return option
