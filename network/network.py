"""The captured network: a graph, its tensors and its layers; what every other room computes with."""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from ..errors import InputError
from .activation import activation_entries, check_activation, is_activation_key
from .blocks import Block, find_blocks
from .find import find_layers
from .layer import Layer
from .replay import Replay
from .schedule import LayerHook, Schedule, ValueHook
from .tensors import HALF_TYPES, StreamedTensors, outlines, overlaid, widened

__all__ = ["InputShape", "Network", "bits_of"]


@dataclass(frozen=True)
class InputShape:
    """What one input of the network looks like: the shape of a single sample, and the type of its numbers."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def elements(self) -> int:
        """Numbers of one sample."""
        return math.prod(self.shape)


class Network:
    """A network as a program: nothing of the user's module is needed to run it.

    Made by `capture`, `load_model` or `load_program`.

    Attributes
    ----------
    graph : torch.fx.Graph
        Functional operators only; `get_attr` nodes name entries of `tensors`.
    tensors : mapping of str to Tensor
        Every parameter and buffer that the graph reads, by qualified name; `StreamedTensors` are read as they
        are asked for.
    inputs : tuple of InputShape
    layers : tuple of Layer
        In execution order of first use.
    skipped : dict
        Matrices and filters that stay float, each with the reason.
    left_out : tuple of Layer
        Those that `without` took out of `layers`.
    float_bits : int
        What the float network weighs: all `tensors`, or what the checkpoint that they were read from states,
        where that has them in fewer bits than the program computes with.
    """

    def __init__(
        self,
        graph: fx.Graph,
        tensors: Mapping[str, Tensor],
        inputs: tuple[InputShape, ...],
        float_bits: int | None = None,
    ) -> None:
        found = find_layers(graph, outlines(tensors))
        self.graph = graph
        self.tensors: Mapping[str, Tensor] = (
            tensors if isinstance(tensors, StreamedTensors) else dict(tensors)
        )
        self.inputs = inputs
        self.layers: tuple[Layer, ...] = found.layers
        self.skipped: dict[str, str] = found.skipped
        self.left_out: tuple[Layer, ...] = ()
        self.schedule = Schedule(graph, found.calls)
        self._calls = found.calls
        self.float_bits: int = bits_of(self.outlines.values()) if float_bits is None else float_bits

    def reads(self, layer: Layer) -> tuple[str, ...]:
        """Names of the values that enter a layer, one for each of its uses, in execution order."""
        return tuple(self._calls[node][1] for node in layer.nodes)

    def weight(self, layer: Layer) -> Tensor:
        """The float weight of a layer, of shape `layer.shape`."""
        return self.tensors[layer.weight]

    def bias(self, layer: Layer) -> Tensor | None:
        """The bias of a layer, of shape `(channels,)`, or None."""
        return None if layer.bias is None else self.tensors[layer.bias]

    @property
    def excluded(self) -> tuple[str, ...]:
        """Names of the layers that were left out."""
        return tuple(layer.name for layer in self.left_out)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        if isinstance(self.tensors, StreamedTensors):
            return self.tensors.device
        return next(iter(self.tensors.values())).device

    @property
    def outlines(self) -> Mapping[str, Tensor]:
        """Tensors of the shapes and types of `tensors`; none is read for it."""
        return outlines(self.tensors)

    @property
    def is_streamed(self) -> bool:
        """Whether tensors are read as they are asked for, because all together may not fit into memory."""
        return isinstance(self.tensors, StreamedTensors)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The network as a chain of single-entry single-exit pieces, in execution order."""
        return find_blocks(self.graph, self.layers)

    @cached_property
    def graph_module(self) -> fx.GraphModule:
        """The same program as a module, for export and for tools that work on modules."""
        root = torch.nn.Module()
        for name, tensor in self.tensors.items():
            *path, last = name.split(".")
            owner = root
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, torch.nn.Module())
                owner = owner.get_submodule(part)
            owner.register_buffer(last, tensor)
        return fx.GraphModule(root, self.graph, class_name="Network")

    def run(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        *,
        tensors: Mapping[str, Tensor] | None = None,
        on_layer: LayerHook | None = None,
        on_value: ValueHook | None = None,
    ) -> Tensor:
        """Run the program and return its output, with the classes (or tokens) on the last axis.

        Values are forgotten after their last use. Works under autograd and `inference_mode`.

        Parameters
        ----------
        inputs : Tensor or tuple of Tensor
            `(samples, ...)` each.
        tensors : mapping, optional
            Tensors to use in place of those of the network, by qualified name; and quantizers of values,
            by `activation_key`.
        on_layer : callable, optional
            Called as `on_layer(call, x, y)` after each use of a layer, with what entered and what came
            out; what it returns goes on in place of `y`.
        on_value : callable, optional
            Called as `on_value(name, value)` with every input and every result that is a tensor, before it
            is quantized; what it returns goes on in its place.

        Raises
        ------
        InputError
            The number of inputs is wrong, or `tensors` names a tensor the network does not have.
        """
        schedule = self.schedule
        values = schedule.start(self._check_inputs(inputs))
        schedule.advance(values, self.overlay(tensors), 0, len(schedule.steps), on_layer, on_value)
        output: Tensor = values[schedule.output]
        return output

    __call__ = run

    def replay(self, inputs: Tensor | tuple[Tensor, ...]) -> Replay:
        """Start a replay: a run that can pause before a layer and be finished many times from there."""
        return Replay(self, self._check_inputs(inputs))

    def replace(self, tensors: Mapping[str, Tensor]) -> Network:
        """The network with some tensors replaced, e.g. by their quantized values."""
        other = copy.copy(self)
        # It would hold the old tensors.
        other.__dict__.pop("graph_module", None)
        other.tensors = self.overlay(tensors)
        return other

    def without(self, names: Collection[str], reason: str) -> Network:
        """The same program in which some layers stay float: they are `skipped`, and no longer `layers`.

        Parameters
        ----------
        names : collection of str
            Layers, by name.
        reason : str
            Why, as `skipped` states it.

        Raises
        ------
        InputError
            A name is not one of a layer, or no layer would be left.
        """
        known = [layer.name for layer in self.layers]
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or known[:3]
                raise InputError(f"the network has no layer '{name}'; the nearest are {', '.join(near)}")
        if not names:
            return self
        left = tuple(layer for layer in self.layers if layer.name not in names)
        if not left:
            raise InputError("every layer would stay float; leave one that is quantized")
        out = [layer for layer in self.layers if layer.name in names]
        other = copy.copy(self)
        # It would hold the layers that are left out.
        other.__dict__.pop("blocks", None)
        other.layers = left
        other.skipped = self.skipped | {layer.weight: reason for layer in out}
        other.left_out = (*self.left_out, *out)
        other._calls = {node: use for node, use in self._calls.items() if use[0].layer in left}
        other.schedule = Schedule(self.graph, other._calls)
        return other

    def to(self, device: torch.device | str) -> Network:
        """The network on another device; operators that make tensors make them there."""
        target = torch.device(device)
        tensors: Mapping[str, Tensor]
        if isinstance(self.tensors, StreamedTensors):
            tensors = self.tensors.to(target)
        else:
            tensors = {name: tensor.to(target) for name, tensor in self.tensors.items()}
        graph = _graph_with(self.graph, lambda leaf: target if isinstance(leaf, torch.device) else leaf)
        return self._remade(graph, tensors, self.inputs)

    def widened(self) -> Network:
        """The same program, computing in float32 what it computes in half precision.

        What slopes are taken of: in half precision those of one sample are rounded to zero before they are
        squared, and no one scale saves the small ones of a network and spares the large. Where nothing is
        in half precision it is the network itself, else a copy, whose tensors take twice the memory.
        """
        types = {given.dtype for given in self.inputs} | {each.dtype for each in self.outlines.values()}

        def wide(leaf: Any) -> Any:
            if not isinstance(leaf, torch.dtype):
                return leaf
            types.add(leaf)
            return torch.float32 if leaf in HALF_TYPES else leaf

        # The program may change types by itself.
        graph = _graph_with(self.graph, wide)
        if types.isdisjoint(HALF_TYPES):
            return self
        tensors: Mapping[str, Tensor]
        if isinstance(self.tensors, StreamedTensors):
            tensors = self.tensors.widened()
        else:
            tensors = {name: widened(tensor) for name, tensor in self.tensors.items()}
        return self._remade(
            graph, tensors, tuple(replace(given, dtype=wide(given.dtype)) for given in self.inputs)
        )

    def _remade(
        self, graph: fx.Graph, tensors: Mapping[str, Tensor], inputs: tuple[InputShape, ...]
    ) -> Network:
        """The network with another form of the same program and tensors."""
        made = Network(graph, tensors, inputs, self.float_bits)
        for layer in [layer for layer in made.layers if layer.name in self.excluded]:
            made = made.without([layer.name], self.skipped[layer.weight])
        return made

    def overlay(self, tensors: Mapping[str, Tensor] | None) -> Mapping[str, Tensor]:
        """All tensors, those given in place of those stored, and quantizers of values.

        Raises
        ------
        InputError
            A name is not one of `tensors`, or a quantizer's not one of a value; the message has the nearest
            names.
        """
        if not tensors:
            return self.tensors
        for value, entry in activation_entries(tensors).items():
            if not self.has_value(value):
                known = [*self.schedule.inputs, *self.schedule.position]
                near = difflib.get_close_matches(value, known, n=3) or known[:3]
                raise InputError(f"the network has no value '{value}'; the nearest are {', '.join(near)}")
            check_activation(value, entry)
        for name in tensors:
            if name not in self.tensors and not is_activation_key(name):
                near = difflib.get_close_matches(name, self.tensors, n=3) or list(self.tensors)[:3]
                raise InputError(f"the network has no tensor '{name}'; the nearest are {', '.join(near)}")
        return overlaid(self.tensors, tensors)

    def has_value(self, name: str) -> bool:
        """Whether the program has an input or result of this name."""
        return name in self.schedule.position or name in self.schedule.inputs

    def _check_inputs(self, inputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        given = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
        if len(given) != len(self.schedule.inputs):
            raise InputError(f"the network takes {len(self.schedule.inputs)} inputs; {len(given)} were given")
        return given


def bits_of(tensors: Iterable[Tensor]) -> int:
    """Size of tensors in bits, as they are in memory."""
    return sum(8 * tensor.numel() * tensor.element_size() for tensor in tensors)


def _graph_with(graph: fx.Graph, change: Callable[[Any], Any]) -> fx.Graph:
    """A copy with every argument of its operators changed."""
    copied = fx.Graph()
    copied.output(copied.graph_copy(graph, {}))
    for node in copied.nodes:
        node.args = fx.node.map_aggregate(node.args, change)
        node.kwargs = fx.node.map_aggregate(node.kwargs, change)
    return copied
