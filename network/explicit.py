"""A network whose low-bit values are part of its program, and not of the tensors that it is run with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from .activation import LEAST_STEP, activation_entries, check_activation
from .sites import elements

if TYPE_CHECKING:
    from .network import Network

__all__ = ["with_explicit_activations"]

aten = torch.ops.aten


def with_explicit_activations(network: Network, tensors: Mapping[str, Tensor]) -> Network:
    """The program with an operation after every value that `tensors` quantizes, read in the value's place.

    One range for the tensor is PyTorch's own `fake_quantize_per_tensor_affine`; ranges of the tokens' own are
    written out. What goes into the program is the same arithmetic as `quantize_activation`.

    Parameters
    ----------
    tensors : mapping
        Entries by `activation_key`; other names are not looked at.

    Raises
    ------
    InputError
        An entry that says no quantizer, or of a value that the program does not have.
    """
    # The class, not the module, which imports this one's neighbours.
    from .network import Network

    entries = activation_entries(tensors)
    network.overlay({name: entry for name, entry in tensors.items() if name not in network.tensors})
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(network.graph, copied)
    assert isinstance(output, fx.Node)
    result = graph.output(output)
    last_input = [*graph.find_nodes(op="placeholder")][-1]
    for old, node in copied.items():
        if old.name not in entries:
            continue
        check_activation(old.name, entries[old.name])
        readers = [user for user in node.users if user is not result]
        is_output = result in node.users
        place = last_input if node.op == "placeholder" else node
        with graph.inserting_after(place):
            stored = _append(graph, node, entries[old.name])
        stored.meta["elements"] = elements(network, node)
        for reader in readers:
            reader.replace_input_with(node, stored)
        if is_output:
            result.replace_input_with(node, stored)
    return Network(graph, network.tensors, network.inputs)


def _append(graph: fx.Graph, node: fx.Node, entry: Tensor) -> fx.Node:
    """The operations of one quantizer behind a node; what `inserting_after` says comes first goes last."""
    if len(entry) == 3:
        step, zero, levels = entry.tolist()
        arguments = (node, step, int(zero), 0, int(levels))
        return graph.call_function(aten.fake_quantize_per_tensor_affine.default, arguments)
    levels = int(entry[0])
    steps: list[fx.Node] = []

    def call(target: torch._ops.OpOverload, *arguments: object) -> fx.Node:
        with graph.inserting_after(steps[-1] if steps else node):
            steps.append(graph.call_function(target, arguments))  # type: ignore[arg-type]
        return steps[-1]

    low = call(aten.clamp_max.default, call(aten.amin.default, node, [-1], True), 0)
    high = call(aten.clamp_min.default, call(aten.amax.default, node, [-1], True), 0)
    step = call(aten.div.Tensor, call(aten.sub.Tensor, high, low), levels)
    step = call(aten.clamp_min.default, step, LEAST_STEP)
    zero = call(aten.round.default, call(aten.div.Tensor, call(aten.neg.default, low), step))
    scaled = call(aten.mul.Tensor, node, call(aten.reciprocal.default, step))
    codes = call(aten.add.Tensor, call(aten.round.default, scaled), zero)
    codes = call(aten.sub.Tensor, call(aten.clamp.default, codes, 0, levels), zero)
    return call(aten.mul.Tensor, codes, step)
