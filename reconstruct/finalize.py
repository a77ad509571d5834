"""Final integer weights of a plan by rounding to the nearest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

import torch
from torch import Tensor

from ..allocator import LayerCut, LayerPlan, Plan, check_layers
from ..errors import InputError
from ..network import Layer, Network, StreamedTensors, activation_key, from_rows, rows
from ..quantizer import Option, QuantizedRows, Quantizer, StepUnit, parse_option
from .values import plan_values

__all__ = [
    "Finalized",
    "LayersOnDemand",
    "NearestLayers",
    "StoredLayer",
    "StoredPart",
    "finalize_nearest",
    "layer_shapes",
    "value_tensors",
]


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


@dataclass(frozen=True, eq=False)
class LayersOnDemand(Sequence[StoredLayer]):
    """Layers that are read or made when they are asked for, and not kept.

    Attributes
    ----------
    names : sequence of str
    read : callable
        From a position to the layer.
    """

    names: Sequence[str]
    read: Callable[[int], StoredLayer]

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> StoredLayer: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[StoredLayer]: ...

    def __getitem__(self, index: int | slice) -> StoredLayer | Sequence[StoredLayer]:
        places = range(len(self.names))[index]
        if isinstance(places, range):
            return LayersOnDemand([self.names[at] for at in places], lambda at: self.read(places[at]))
        return self.read(places)


@dataclass(frozen=True)
class Finalized:
    """A plan carried out.

    Attributes
    ----------
    layers : sequence of StoredLayer
        In network order; a tuple, or read one by one as they are asked for.
    biases : dict of str to Tensor
        Replaced biases by tensor name; empty without a correction.
    values : dict of str to Tensor
        What quantizes values of the network, by their name; empty where all stay float.
    """

    layers: Sequence[StoredLayer]
    biases: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)

    def tensors(self, network: Network) -> Mapping[str, Tensor]:
        """What replaces the network's tensors: dequantized weights, corrected biases, and low-bit values.

        Of a network whose tensors are streamed, each weight is dequantized when it is asked for, and as many
        are kept as the network keeps of its own.
        """
        names = (
            self.layers.names
            if isinstance(self.layers, LayersOnDemand)
            else [layer.name for layer in self.layers]
        )
        place = {name: index for index, name in enumerate(names)}
        by_weight = {layer.weight: layer for layer in network.layers}
        others = {name: bias.to(network.device) for name, bias in self.biases.items()}
        others |= value_tensors(self.values)

        def dequantized(name: str) -> Tensor:
            if name in others:
                return others[name]
            layer = by_weight[name]
            weight = from_rows(layer, self.layers[place[layer.name]].dequantize())
            return weight.to(network.device, network.outlines[name].dtype)

        if not isinstance(network.tensors, StreamedTensors):
            return {name: dequantized(name) for name in by_weight} | others
        known = {name: network.outlines[name] for name in by_weight} | others
        return StreamedTensors(known, dequantized, network.device, network.tensors.memory_bytes)


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
    nearest = NearestLayers(network, plan)
    stored = []
    for index, layer in enumerate(network.layers):
        stored.append(nearest.of(layer))
        if on_layer is not None:
            on_layer(index + 1, len(network.layers))
    return Finalized(tuple(stored), values=plan_values(plan))


class NearestLayers:
    """The layers of a plan rounded to nearest, one by one as they are asked for.

    Raises
    ------
    InputError
        As `finalize_nearest`.
    """

    def __init__(self, network: Network, plan: Plan) -> None:
        check_layers(plan, layer_shapes(network))
        self._network = network
        self._quantizer = Quantizer.from_settings(plan.quantizer)
        self._planned = {layer.name: layer for layer in plan.layers}

    def of(self, layer: Layer) -> StoredLayer:
        """Codes and steps of a layer."""
        frame = self.frame(layer)
        assert frame.cut is not None
        weight = frame.cut.to_rows(rows(layer, self._network.weight(layer)))
        parts = tuple(
            StoredPart(part.index, self._quantizer.quantize(weight[part.index], part.rows.option))
            for part in frame.parts
        )
        return StoredLayer(layer.name, parts, frame.cut)

    def frame(self, layer: Layer) -> StoredLayer:
        """A layer as its plan cuts it into parts, with no codes and no steps yet."""
        planned = self._planned[layer.name]
        chosen, cut, device = planned.strip_options(), planned.layer_cut(), self._network.device
        parts = []
        for text in dict.fromkeys(chosen):
            option = _fitting(planned, text)
            strips = [index for index, other in enumerate(chosen) if other == text]
            index = torch.tensor(cut.strip_rows(strips), device=device)
            none = torch.empty(0, device=device)
            parts.append(StoredPart(index, QuantizedRows(option, none.to(torch.int8), none)))
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
