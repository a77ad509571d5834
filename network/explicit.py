"""A network whose low-bit values are part of its program, and not of the tensors that it is run with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, fx

from .activation import LEAST_STEP, activation_entries, check_activation
from .sites import elements

if TYPE_CHECKING:
    from .network import Network

__all__ = ["with_explicit_activations"]

aten = torch.ops.aten
Static: TypeAlias = Callable[[Tensor, float, int, int], Tensor]


def with_explicit_activations(
    network: Network, tensors: Mapping[str, Tensor], *, static: Static | None = None
) -> Network:
    """The program with operations after every value that `tensors` quantizes, read in the value's place.

    They are PyTorch's plain arithmetic, as `quantize_activation` does it.

    Parameters
    ----------
    tensors : mapping
        Entries by `activation_key`; other names are not looked at.
    static : callable, optional
        One operator in place of the arithmetic where the tensor has one range, called with the value, the
        step, the zero point and the greatest code.

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
    in_half = any(outline.dtype is torch.float16 for outline in network.outlines.values())
    for old, node in copied.items():
        if old.name not in entries:
            continue
        check_activation(old.name, entries[old.name])
        readers = [user for user in node.users if user is not result]
        is_output = result in node.users
        place = last_input if node.op == "placeholder" else node
        stored = _append(graph, place, node, entries[old.name], static, in_half=in_half)
        stored.meta["elements"] = elements(network, node)
        for reader in readers:
            reader.replace_input_with(node, stored)
        if is_output:
            result.replace_input_with(node, stored)
    explicit = Network(graph, network.tensors, network.inputs)
    for layer in [layer for layer in explicit.layers if layer.name in network.excluded]:
        explicit = explicit.without([layer.name], network.skipped[layer.weight])
    return explicit


def _append(
    graph: fx.Graph, place: fx.Node, node: fx.Node, entry: Tensor, static: Static | None, *, in_half: bool
) -> fx.Node:
    """The operations of one quantizer of a node, behind a place in the graph."""
    added: list[fx.Node] = []

    def call(target: Callable[..., object], *arguments: object) -> fx.Node:
        with graph.inserting_after(added[-1] if added else place):
            added.append(graph.call_function(target, arguments))  # type: ignore[arg-type]
        return added[-1]

    levels = int(entry[-1])
    if len(entry) == 3:
        size, point = float(entry[0]), int(entry[1])
        if static is not None:
            return call(static, node, size, point, levels)
        scaled = call(aten.mul.Tensor, node, float(entry[0].reciprocal()))
        codes = call(aten.add.Tensor, call(aten.round.default, scaled), point)
        codes = call(aten.sub.Tensor, call(aten.clamp.default, codes, 0, levels), point)
        return call(aten.mul.Tensor, codes, size)
    given = node
    if in_half:
        # The least step and its reciprocal are no numbers of float16.
        node = call(aten.to.dtype, node, torch.float32)
    low = call(aten.clamp_max.default, call(aten.amin.default, node, [-1], True), 0)
    high = call(aten.clamp_min.default, call(aten.amax.default, node, [-1], True), 0)
    step = call(aten.div.Tensor, call(aten.sub.Tensor, high, low), levels)
    step = call(aten.clamp_min.default, step, LEAST_STEP)
    zero = call(aten.round.default, call(aten.div.Tensor, call(aten.neg.default, low), step))
    scaled = call(aten.mul.Tensor, node, call(aten.reciprocal.default, step))
    codes = call(aten.add.Tensor, call(aten.round.default, scaled), zero)
    codes = call(aten.sub.Tensor, call(aten.clamp.default, codes, 0, levels), zero)
    values = call(aten.mul.Tensor, codes, step)
    return call(aten.type_as.default, values, given) if in_half else values
