"""The network as a chain of blocks: single-entry single-exit regions, from dominators."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import networkx as nx
import torch
from torch import fx

from .layer import Layer

__all__ = ["Block", "find_blocks", "is_pointwise"]

aten = torch.ops.aten

_SOURCE = "(input)"
# Their results have the shape of their input but not its values.
_SHAPE_ONLY = frozenset(
    {
        aten.empty_like.default,
        aten.full_like.default,
        aten.new_empty.default,
        aten.new_full.default,
        aten.new_ones.default,
        aten.new_zeros.default,
        aten.ones_like.default,
        aten.zeros_like.default,
    }
)
# Yes or no for every number.
_ANSWERS = frozenset(
    {
        aten.eq,
        aten.ge,
        aten.gt,
        aten.isfinite,
        aten.isinf,
        aten.isnan,
        aten.isneginf,
        aten.isposinf,
        aten.le,
        aten.logical_and,
        aten.logical_not,
        aten.logical_or,
        aten.logical_xor,
        aten.lt,
        aten.ne,
        aten.signbit,
    }
)


@dataclass(frozen=True)
class Block:
    """A single-entry single-exit region of the graph.

    Every path from the input to the output passes through `entry`, then `exit`; what lies between reads
    nothing else that depends on the input.

    Attributes
    ----------
    entry : str
        The node whose value enters the block; it belongs to the block before. `(input)` where several
        inputs enter.
    exit : str
        The node whose value leaves the block.
    layers : tuple of Layer
        Layers first used inside, in execution order.
    """

    entry: str
    exit: str
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class _Piece:
    """What lies between two neighbours on the spine: one operation, or parallel branches that meet again."""

    entry: str
    exit: str
    layers: tuple[Layer, ...]
    branches: bool
    pointwise: bool


def find_blocks(graph: fx.Graph, layers: tuple[Layer, ...]) -> tuple[Block, ...]:
    """Cut a graph into blocks, in execution order; every layer is in exactly one.

    The spine is the chain of nodes that dominate the output: those on every path to it. Two neighbours on
    the spine bound the smallest regions. A region with parallel branches and layers (a residual block) is
    a block; so is each layer of a plain chain. Pointwise operations after a block join it; operations
    between blocks go with the layer that follows, or, before a residual block, with what precedes.
    """
    blocks: list[Block] = []
    # Where the operations that belong to no block yet begin; None when there are none.
    pending: str | None = None
    for piece in _pieces(graph, layers):
        if piece.layers:
            entry = piece.entry
            if pending is not None and piece.branches and blocks:
                blocks[-1] = Block(blocks[-1].entry, piece.entry, blocks[-1].layers)
            elif pending is not None and not piece.branches:
                entry = pending
            blocks.append(Block(entry, piece.exit, piece.layers))
            pending = None
        elif piece.pointwise and pending is None and blocks:
            blocks[-1] = Block(blocks[-1].entry, piece.exit, blocks[-1].layers)
        elif pending is None:
            pending = piece.entry
    if pending is not None and blocks:
        blocks[-1] = Block(blocks[-1].entry, str(graph.output_node().args[0]), blocks[-1].layers)
    return tuple(blocks)


def _pieces(graph: fx.Graph, layers: tuple[Layer, ...]) -> list[_Piece]:
    flow = _data_flow(graph)
    output = str(graph.output_node().args[0])
    dominators = nx.immediate_dominators(flow, _SOURCE)
    spine = [output]
    while spine[-1] != _SOURCE:
        spine.append(dominators[spine[-1]])
    spine.reverse()
    place = {name: index for index, name in enumerate(spine)}
    # A node off the spine lies behind its nearest dominator on the spine.
    inside: list[list[str]] = [[] for _ in spine]
    for name in flow:
        nearest = name
        while nearest not in place:
            nearest = dominators[nearest]
        if name not in place:
            inside[place[nearest]].append(name)
    piece_of = {name: index for index, names in enumerate(inside) for name in names}
    piece_of.update({name: index - 1 for name, index in place.items()})
    nodes = {node.name: node for node in graph.nodes}
    found: list[list[Layer]] = [[] for _ in spine]
    for layer in layers:
        found[piece_of[_reaching(nodes[layer.nodes[0]], flow)]].append(layer)
    return [
        _Piece(
            entry=entry,
            exit=exit_,
            layers=tuple(found[index]),
            branches=bool(inside[index]),
            pointwise=all(is_pointwise(nodes[name]) for name in (*inside[index], exit_)),
        )
        for index, (entry, exit_) in enumerate(pairwise(spine))
        if nodes[exit_].op != "placeholder"
    ]


def _data_flow(graph: fx.Graph) -> nx.DiGraph[str]:
    """Who reads whose values, from a source before all inputs to the output; sizes and constants left out."""
    flow: nx.DiGraph[str] = nx.DiGraph()
    for node in graph.nodes:
        if node.op == "placeholder":
            flow.add_edge(_SOURCE, node.name)
        elif "elements" in node.meta and node.target not in _SHAPE_ONLY:
            sources = [source.name for source in node.all_input_nodes if source.name in flow]
            flow.add_edges_from((source, node.name) for source in sources)
    output = str(graph.output_node().args[0])
    return flow.subgraph(nx.ancestors(flow, output) | {output}).copy()


def _reaching(node: fx.Node, flow: nx.DiGraph[str]) -> str:
    """The node itself, or where its value first meets the data: some layers work on constants alone."""
    waiting = [node]
    while waiting[0].name not in flow:
        waiting.extend(waiting.pop(0).users)
    return waiting[0].name


def is_pointwise(node: fx.Node) -> bool:
    """Whether an operation makes a number of every number; a comparison makes no number."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target.overloadpacket in _ANSWERS:
        return False
    return torch.Tag.pointwise in target.tags
