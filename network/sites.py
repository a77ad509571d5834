"""The values that can be stored in low bits: those that a layer multiplies with its weight."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import fx

if TYPE_CHECKING:
    from .network import Network

__all__ = ["Reader", "Site", "data_values", "elements", "find_sites", "view_roots"]

aten = torch.ops.aten

# The same numbers in another order or shape.
_VIEWS = frozenset(
    {
        aten._unsafe_view.default,
        aten.clone.default,
        aten.contiguous.default,
        aten.flatten.using_ints,
        aten.movedim.int,
        aten.movedim.intlist,
        aten.permute.default,
        aten.reshape.default,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.t.default,
        aten.transpose.int,
        aten.unflatten.int,
        aten.unsqueeze.default,
        aten.view.default,
    }
)
# Some of the numbers, or all of them several times, where they lie.
_PARTS = frozenset(
    {
        aten.chunk.default,
        aten.expand.default,
        aten.select.int,
        aten.slice.Tensor,
        aten.split.Tensor,
        aten.split_with_sizes.default,
        aten.unbind.int,
        operator.getitem,
    }
)
_NEVER_NEGATIVE = frozenset(
    {
        aten._softmax.default,
        aten.abs.default,
        aten.exp.default,
        aten.hardsigmoid.default,
        aten.relu.default,
        aten.relu6.default,
        aten.sigmoid.default,
        aten.softmax.int,
        aten.square.default,
    }
)
# Not negative where nothing that enters is.
_KEEPING = (
    _VIEWS
    | _PARTS
    | frozenset(
        {
            aten.adaptive_avg_pool1d.default,
            aten.adaptive_avg_pool2d.default,
            aten.add.Tensor,
            aten.avg_pool1d.default,
            aten.avg_pool2d.default,
            aten.cat.default,
            aten.constant_pad_nd.default,
            aten.max_pool1d.default,
            aten.max_pool2d.default,
            aten.mean.dim,
            aten.mul.Tensor,
            aten.pad.default,
            aten.repeat_interleave.self_int,
            aten.sum.dim_IntList,
        }
    )
)
# With the least value as second argument.
_CLIPPING = frozenset({aten.clamp.default, aten.clamp_min.default, aten.hardtanh.default})
# Products, with which of their arguments, or lists of them, are multiplied.
_PRODUCTS = {
    aten.baddbmm.default: slice(1, 3),
    aten.bmm.default: slice(0, 2),
    aten.einsum.default: slice(1, 2),
    aten.matmul.default: slice(0, 2),
    aten.scaled_dot_product_attention.default: slice(0, 3),
}


@dataclass(frozen=True)
class Reader:
    """A layer that multiplies a value, and the multiply-accumulates that this takes for one sample."""

    layer: str
    macs: int


@dataclass(frozen=True)
class Site:
    """A value that can be stored in low bits; one quantizer serves all that read it.

    Attributes
    ----------
    name : str
        The node or input, which computes the numbers: what only orders or shapes them anew comes after.
    readers : tuple of Reader
        Layers, in network order; empty where only products of values read it.
    elements : int
        Numbers for one sample.
    nonnegative : bool
        Whether the program never makes it negative.
    by_token : bool
        Whether vectors along its last axis can have ranges of their own: all its readers are linear layers,
        and read it as it is.
    """

    name: str
    readers: tuple[Reader, ...]
    elements: int
    nonnegative: bool
    by_token: bool


def view_roots(graph: fx.Graph, *, parts: bool = False) -> dict[str, str]:
    """For every value, the one whose numbers it holds, itself unless it is a view.

    Parameters
    ----------
    parts : bool
        Whether what holds some of the numbers only, where they lie, counts as a view too.
    """
    views = _VIEWS | _PARTS if parts else _VIEWS
    roots: dict[str, str] = {}
    for node in graph.nodes:
        source = node.args[0] if node.target in views and node.args else None
        roots[node.name] = roots[source.name] if isinstance(source, fx.Node) else node.name
    return roots


def data_values(graph: fx.Graph) -> set[str]:
    """Inputs and what is computed from them, sizes left out."""
    found: set[str] = set()
    for node in graph.nodes:
        computed = "elements" in node.meta and any(each.name in found for each in node.all_input_nodes)
        if node.op == "placeholder" or computed:
            found.add(node.name)
    return found


def find_sites(network: Network, *, attention: bool = False) -> tuple[Site, ...]:
    """The values that layers read, in the order in which the program computes them.

    Parameters
    ----------
    attention : bool
        Whether the operands of products of values, as in attention, are sites too, where at least two of them
        depend on the inputs. Softmax and norms stay float in any case.
    """
    roots = view_roots(network.graph)
    nodes = {node.name: node for node in network.graph.nodes}
    readers: dict[str, dict[str, int]] = {}
    by_token: dict[str, bool] = {}
    for layer in network.layers:
        for node, value in zip(layer.nodes, network.reads(layer), strict=True):
            if node in layer.lookups:
                continue
            root = roots[value]
            macs = nodes[node].meta.get("elements", 0) * layer.fan_in
            of = readers.setdefault(root, {})
            of[layer.name] = of.get(layer.name, 0) + macs
            plain = layer.kind == "linear" and value == root
            by_token[root] = by_token.get(root, True) and plain
    if attention:
        for value in _operands(network):
            readers.setdefault(roots[value], {})
            by_token[roots[value]] = False
    nonnegative = _nonnegative(network.graph)
    return tuple(
        Site(
            name=node.name,
            readers=tuple(Reader(*item) for item in readers[node.name].items()),
            elements=elements(network, node),
            nonnegative=node.name in nonnegative,
            by_token=by_token[node.name],
        )
        for node in network.graph.nodes
        if node.name in readers and node.op != "get_attr"
    )


def _operands(network: Network) -> list[str]:
    """Values that are multiplied with each other."""
    data = data_values(network.graph)
    found = []
    for node in network.graph.nodes:
        if node.target in _PRODUCTS:
            factors: list[fx.Node] = []
            fx.node.map_arg(node.args[_PRODUCTS[node.target]], factors.append)
            operands = [each.name for each in factors if each.name in data]
            found += operands if len(operands) > 1 else []
    return found


def _nonnegative(graph: fx.Graph) -> set[str]:
    """Values that cannot be negative, whatever goes in."""
    found: set[str] = set()
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        # Sizes are no numbers of the value.
        sources = [
            source.name
            for source in node.all_input_nodes
            if source.op != "call_function" or "elements" in source.meta
        ]
        if node.target in _NEVER_NEGATIVE:
            found.add(node.name)
        elif node.target in _CLIPPING:
            least = node.args[1] if len(node.args) > 1 else node.kwargs.get("min", node.kwargs.get("min_val"))
            if isinstance(least, (int, float)) and least >= 0:
                found.add(node.name)
        elif node.target in _KEEPING and sources and found.issuperset(sources) and not _has_negative(node):
            found.add(node.name)
    return found


def _has_negative(node: fx.Node) -> bool:
    """Whether a number among the arguments can make the result negative."""
    if node.target in (aten.add.Tensor, aten.mul.Tensor):
        given = [*node.args[1:], *node.kwargs.values()]
    elif node.target is aten.pad.default:
        given = [*node.args[3:], node.kwargs.get("value")]
    elif node.target is aten.constant_pad_nd.default:
        given = [*node.args[2:], node.kwargs.get("value")]
    else:
        return False
    return any(isinstance(number, (int, float)) and number < 0 for number in given)


def elements(network: Network, node: fx.Node) -> int:
    """Numbers of an input or result for one sample."""
    if node.op != "placeholder":
        return int(node.meta.get("elements", 0))
    shapes = dict(zip(network.schedule.inputs, network.inputs, strict=True))
    return torch.Size(shapes[node.name].shape).numel()
