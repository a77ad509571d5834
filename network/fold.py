"""Rewrites that leave the output as it is: batch norm into the layer before it, transposed weights into
linear layers, and the end of whatever nothing reads any more."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

__all__ = ["fold_batch_norms", "fold_transposes", "prune"]

aten = torch.ops.aten

# All take (input, weight, bias, ...), with output channels on the weight's first axis.
_WEIGHTED = frozenset(
    {
        aten.conv1d.default,
        aten.conv1d.padding,
        aten.conv2d.default,
        aten.conv2d.padding,
        aten.conv3d.default,
        aten.conv3d.padding,
        aten.convolution.default,
        aten.linear.default,
    }
)


@dataclass(frozen=True)
class _BatchNorm:
    """A batch norm of the graph: its source, and the nodes of its tensors (gain and shift may be None)."""

    result: fx.Node
    source: fx.Node
    gain: fx.Node | None
    shift: fx.Node | None
    mean: fx.Node
    variance: fx.Node
    eps: float

    @property
    def is_stored(self) -> bool:
        """Whether all its tensors are stored ones, not computed by the program."""
        return all(
            node is None or node.op == "get_attr"
            for node in (self.gain, self.shift, self.mean, self.variance)
        )


def fold_batch_norms(graph: fx.Graph, tensors: dict[str, Tensor]) -> None:
    """Fold each batch norm whose input comes from one convolution or linear layer into that layer.

    With gain g, shift b, running mean m and variance v, per output channel::

        W' = W * g / sqrt(v + eps)        bias' = b + (bias - m) * g / sqrt(v + eps)

    computed in double precision. A layer whose weight is shared, or whose output something else reads too,
    keeps its batch norm. `graph` and `tensors` are changed in place.
    """
    for node in list(graph.nodes):
        norm = _batch_norm(node)
        if norm is None or not norm.is_stored or not _can_fold(norm.source):
            continue
        layer = norm.source
        name, bias = _stored(layer.args[1]), _stored(_bias(layer))
        weight = tensors[name]
        channels = weight.shape[0]
        # Doubles, so that folding costs no accuracy of its own.
        zeros = torch.zeros(channels, dtype=torch.float64, device=weight.device)
        scale = tensors[_stored(norm.gain)].double() if norm.gain is not None else zeros + 1
        scale = scale / (tensors[_stored(norm.variance)].double() + norm.eps).sqrt()
        shift = tensors[_stored(norm.shift)].double() if norm.shift is not None else zeros
        offset = (tensors[bias].double() if bias else zeros) - tensors[_stored(norm.mean)].double()
        new_bias = _bias_name(layer, name, tensors)
        tensors[name] = (weight.double() * scale.reshape(-1, *[1] * (weight.ndim - 1))).to(weight.dtype)
        tensors[new_bias] = (shift + offset * scale).to(weight.dtype)
        with graph.inserting_before(layer):
            read = graph.create_node("get_attr", new_bias)
        layer.args = (*layer.args[:2], read, *layer.args[3:])
        norm.result.replace_all_uses_with(layer)


def fold_transposes(graph: fx.Graph, tensors: dict[str, Tensor]) -> None:
    """Write products with a transposed stored matrix (`x @ W.t()`, as decomposed programs have) as linear."""
    for node in list(graph.nodes):
        if node.target in (aten.mm.default, aten.matmul.default):
            source, weight, bias = node.args[0], node.args[1], None
        elif node.target is aten.addmm.default and not node.kwargs:
            source, weight, bias = node.args[1], node.args[2], node.args[0]
            if not (isinstance(bias, fx.Node) and bias.op == "get_attr" and tensors[_stored(bias)].ndim == 1):
                continue
        else:
            continue
        matrix = _transposed(weight, tensors)
        if matrix is not None:
            node.target = aten.linear.default
            node.args = (source, matrix, bias) if bias is not None else (source, matrix)


def prune(graph: fx.Graph, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove nodes that do not reach the output; returns the tensors that are still read."""
    graph.eliminate_dead_code()
    for node in graph.find_nodes(op="get_attr"):
        if not node.users:
            graph.erase_node(node)
    read = {str(node.target) for node in graph.find_nodes(op="get_attr")}
    return {name: tensor for name, tensor in tensors.items() if name in read}


def _batch_norm(node: fx.Node) -> _BatchNorm | None:
    if node.target is aten.batch_norm.default:
        source, gain, shift, mean, variance, _, _, eps = node.args[:8]
    elif node.target is operator.getitem and node.args[1] == 0:
        norm = node.args[0]
        if not (
            isinstance(norm, fx.Node) and norm.target is aten._native_batch_norm_legit_no_training.default
        ):
            return None
        source, gain, shift, mean, variance, _, eps = norm.args
    else:
        return None
    return _BatchNorm(node, source, gain, shift, mean, variance, eps)  # type: ignore[arg-type]


def _can_fold(layer: fx.Node) -> bool:
    if layer.target not in _WEIGHTED or len(layer.users) != 1:
        return False
    if layer.target is aten.linear.default and layer.meta.get("rank") != 2:
        # On (samples, tokens, features) a batch norm scales tokens, which no weight row can.
        return False
    if layer.target is aten.convolution.default and layer.args[6]:
        return False
    weight, bias = layer.args[1], _bias(layer)
    if not (isinstance(weight, fx.Node) and weight.op == "get_attr" and len(weight.users) == 1):
        return False
    return bias is None or bias.op == "get_attr"


def _bias(layer: fx.Node) -> fx.Node | None:
    bias = layer.args[2] if len(layer.args) > 2 else None
    return bias if isinstance(bias, fx.Node) else None


def _bias_name(layer: fx.Node, weight: str, tensors: dict[str, Tensor]) -> str:
    """Where to store the folded bias: in place of the layer's own unless that is shared, else a free name."""
    bias = _bias(layer)
    if bias is not None and len(bias.users) == 1:
        return _stored(bias)
    # Beside the weight: below it, a module would have to have a tensor and a part of one name.
    name = weight.removesuffix("weight") + "bias" if weight.endswith("weight") else f"{weight}_bias"
    while name in tensors:
        name += "_folded"
    return name


def _stored(node: fx.node.Argument) -> str:
    return str(node.target) if isinstance(node, fx.Node) else ""


def _transposed(node: fx.node.Argument, tensors: dict[str, Tensor]) -> fx.Node | None:
    """The stored matrix of which `node` is the transpose, or None."""
    if not isinstance(node, fx.Node) or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    source = node.args[0]
    if source.op != "get_attr" or tensors[_stored(source)].ndim != 2:
        return None
    if node.target in (aten.t.default, aten.numpy_T.default, aten.mT.default):
        return source
    if node.target is aten.transpose.int:
        return source if node.args[1] != node.args[2] else None
    if node.target is aten.permute.default:
        return source if list(node.args[1]) in ([1, 0], [-1, 0], [1, -2], [-1, -2]) else None  # type: ignore[arg-type]
    return None
