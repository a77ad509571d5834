"""Finding the layers of a graph: which nodes multiply with a stored weight or look it up, and its cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, fx

from .layer import Layer, LayerCall

__all__ = ["Found", "find_layers"]

aten = torch.ops.aten


@dataclass(frozen=True)
class Found:
    """The layers of a graph.

    Attributes
    ----------
    layers : tuple of Layer
        In execution order of their first use.
    calls : dict
        Node name to the use of a layer it performs and the name of the value it multiplies.
    skipped : dict
        Matrices and filters that stay float, each with the reason.
    """

    layers: tuple[Layer, ...]
    calls: dict[str, tuple[LayerCall, str]]
    skipped: dict[str, str]


@dataclass(frozen=True)
class _Pattern:
    """Where an operator takes the input, the weight and the bias."""

    kind: Literal["conv", "linear", "embedding"]
    source: int
    weight: int
    bias: int | None
    transposed: bool = False


@dataclass(frozen=True)
class _Use:
    node: fx.Node
    pattern: _Pattern
    source: fx.Node
    weight: str
    bias: str | None


_CONVOLUTION = _Pattern("conv", 0, 1, 2)
_PATTERNS = {
    aten.conv1d.default: _CONVOLUTION,
    aten.conv1d.padding: _CONVOLUTION,
    aten.conv2d.default: _CONVOLUTION,
    aten.conv2d.padding: _CONVOLUTION,
    aten.conv3d.default: _CONVOLUTION,
    aten.conv3d.padding: _CONVOLUTION,
    aten.convolution.default: _CONVOLUTION,
    aten.linear.default: _Pattern("linear", 0, 1, 2),
    aten.addmm.default: _Pattern("linear", 1, 2, 0, transposed=True),
    aten.mm.default: _Pattern("linear", 0, 1, None, transposed=True),
    aten.matmul.default: _Pattern("linear", 0, 1, None, transposed=True),
    aten.embedding.default: _Pattern("embedding", 1, 0, None),
}
# What they give depends on the shape of what they read alone.
_SIZES = frozenset({aten.sym_size.int, aten.sym_numel.default, aten.sym_stride.int})


def find_layers(graph: fx.Graph, tensors: Mapping[str, Tensor]) -> Found:
    """Find every convolution, linear, addmm, matmul and embedding whose weight is a stored tensor.

    A weight read by several of them is one layer, such as an embedding that is the last layer's weight too. A
    weight that anything else reads, or that is applied in two different ways, stays float and is listed as
    skipped; so is a table that is looked up at places which no input changes, such as positions.

    Parameters
    ----------
    graph : torch.fx.Graph
        Nodes that compute carry `meta["elements"]`, the elements of their result for one sample.
    tensors : mapping
        What the `get_attr` nodes name.
    """
    readers: dict[str, list[fx.Node]] = {}
    for node in graph.find_nodes(op="get_attr"):
        readers.setdefault(str(node.target), []).extend(node.users)
    uses: dict[str, list[_Use]] = {}
    reasons: dict[str, str] = {}
    moving = _input_values(graph)
    for node in graph.nodes:
        if node.op != "call_function" or (use := _use(node, tensors)) is None:
            continue
        if use.pattern.kind == "embedding" and use.source not in moving:
            reasons[use.weight] = f"looked up at places that no input changes (node {node.name})"
            continue
        uses.setdefault(use.weight, []).append(use)
    layers: list[Layer] = []
    calls: dict[str, tuple[LayerCall, str]] = {}
    for weight, found in uses.items():
        users = {use.node for use in found}
        others = [node for node in readers[weight] if node not in users]
        if others:
            reasons[weight] = (
                reasons.get(weight) or f"also read by {others[0].target} (node {others[0].name})"
            )
            continue
        if len({_manner(use) for use in found}) > 1:
            reasons[weight] = f"applied in different ways by {', '.join(use.node.name for use in found)}"
            continue
        layer = _layer(found, tensors[weight], readers)
        layers.append(layer)
        calls.update({use.node.name: (_call(layer, use.node), use.source.name) for use in found})
    taken = {layer.weight for layer in layers}
    skipped = {
        name: reasons.get(name, _reason(readers[name]))
        for name, tensor in tensors.items()
        if name not in taken and name in readers and tensor.ndim >= 2 and tensor.is_floating_point()
    }
    return Found(tuple(layers), calls, skipped)


def _use(node: fx.Node, tensors: Mapping[str, Tensor]) -> _Use | None:
    pattern = _PATTERNS.get(node.target)  # type: ignore[call-overload]
    if pattern is None or len(node.args) <= max(pattern.source, pattern.weight):
        return None
    source, weight = node.args[pattern.source], node.args[pattern.weight]
    if not (isinstance(weight, fx.Node) and weight.op == "get_attr"):
        return None
    if not isinstance(source, fx.Node) or source.op == "get_attr":
        return None
    stored = tensors[str(weight.target)]
    if not stored.is_floating_point() or stored.ndim not in ((3, 4, 5) if pattern.kind == "conv" else (2,)):
        return None
    if node.target is aten.convolution.default and node.args[6]:
        return None
    if any(node.kwargs.get(name, 1) != 1 for name in ("alpha", "beta")):
        return None
    bias = _argument(node, pattern.bias)
    bias_name = str(bias.target) if isinstance(bias, fx.Node) and bias.op == "get_attr" else None
    if bias_name is not None and tensors[bias_name].ndim != 1:
        bias_name = None
    return _Use(node, pattern, source, str(weight.target), bias_name)


def _layer(uses: list[_Use], weight: Tensor, readers: Mapping[str, list[fx.Node]]) -> Layer:
    products = [use for use in uses if use.pattern.kind != "embedding"]
    first = (products or uses)[0]
    transposed = first.pattern.transposed
    channels = weight.shape[1] if transposed else weight.shape[0]
    fan_in = weight.numel() // max(channels, 1)
    biases = {use.bias for use in products}
    bias = biases.pop() if len(biases) == 1 else None
    # A bias that other nodes read cannot be changed for this layer alone.
    if bias is not None and Counter(readers[bias]) != Counter(use.node for use in products):
        bias = None
    return Layer(
        name=first.weight.removesuffix(".weight"),
        kind=first.pattern.kind,
        weight=first.weight,
        bias=bias,
        shape=tuple(weight.shape),
        transposed=transposed,
        channels=channels,
        fan_in=fan_in,
        groups=_groups(first.node),
        macs=sum(use.node.meta["elements"] * fan_in for use in products),
        nodes=tuple(use.node.name for use in uses),
        lookups=tuple(use.node.name for use in uses if use.pattern.kind == "embedding"),
    )


def _call(layer: Layer, node: fx.Node) -> LayerCall:
    if layer.kind != "conv":
        return LayerCall(layer, node.name)
    kernel = layer.shape[2:]
    rank = len(kernel)
    stride = _spatial(_argument(node, 3, 1), rank)
    dilation = _spatial(_argument(node, 5, 1), rank)
    given = _argument(node, 4, 0)
    if given == "same":
        totals = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        padding = tuple((total // 2, total - total // 2) for total in totals)
    else:
        sides = _spatial(0 if given == "valid" else given, rank)
        padding = tuple((side, side) for side in sides)
    return replace(
        LayerCall(layer, node.name, groups=layer.groups), stride=stride, padding=padding, dilation=dilation
    )


def _manner(use: _Use) -> tuple[str, bool, int]:
    """How a weight is applied; looking up its rows goes together with multiplying by each of them."""
    kind = "linear" if use.pattern.kind == "embedding" else use.pattern.kind
    return kind, use.pattern.transposed, _groups(use.node)


def _input_values(graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose values depend on those of the inputs, not on their shapes alone."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or (
            node.op == "call_function"
            and node.target not in _SIZES
            and not found.isdisjoint(node.all_input_nodes)
        ):
            found.add(node)
    return found


def _groups(node: fx.Node) -> int:
    if _PATTERNS[node.target].kind != "conv":  # type: ignore[index]
        return 1
    return int(_argument(node, 8 if node.target is aten.convolution.default else 6, 1))


def _spatial(value: Any, rank: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return tuple(int(part) for part in (values * rank if len(values) == 1 else values))


def _argument(node: fx.Node, position: int | None, default: Any = None) -> Any:
    if position is None:
        return None
    if position < len(node.args):
        return node.args[position]
    assert isinstance(node.target, torch._ops.OpOverload)
    name = node.target._schema.arguments[position].name
    return node.kwargs.get(name, default)


def _reason(readers: list[fx.Node]) -> str:
    return f"read by {readers[0].target} (node {readers[0].name}), which is not a layer"
