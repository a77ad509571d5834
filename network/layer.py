"""A layer: a weight tensor that some nodes of the program multiply with or look up, and how they do it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

__all__ = ["Layer", "LayerCall", "from_rows", "rows"]


@dataclass(frozen=True)
class Layer:
    """One weight of the network that can be stored in low bits.

    A weight that several nodes read is one layer with several `nodes`. Some of them may look rows up by token
    ids, the others multiply: an embedding that is tied to the last layer is one layer.

    Attributes
    ----------
    name : str
        The weight's qualified name without its last part `.weight`.
    kind : "conv", "linear" or "embedding"
        An embedding where all nodes look rows up.
    weight, bias : str
        Keys into `Network.tensors`. `bias` is None when there is none, or when other nodes read it too.
    shape : tuple of int
        The weight as stored: `(out, in / groups, *kernel)` for a convolution, `(out, in)` for a linear
        layer, `(in, out)` when `transposed`, `(entries, width)` for an embedding.
    transposed : bool
        The program computes `x @ weight` (addmm, matmul) rather than `x @ weight.T`.
    channels : int
        Output channels; entries of an embedding.
    fan_in : int
        Weights per output channel; `channels * fan_in` is the number of weights.
    groups : int
        Groups of a convolution, 1 for a linear layer.
    macs : int
        Multiply-accumulates for one sample, summed over `nodes`.
    nodes : tuple of str
        The graph nodes that apply the weight, in execution order.
    lookups : tuple of str
        Those of them that look rows up.
    """

    name: str
    kind: Literal["conv", "linear", "embedding"]
    weight: str
    bias: str | None
    shape: tuple[int, ...]
    transposed: bool
    channels: int
    fan_in: int
    groups: int
    macs: int
    nodes: tuple[str, ...]
    lookups: tuple[str, ...] = ()

    @property
    def products(self) -> tuple[str, ...]:
        """The nodes that multiply with the weight, in execution order."""
        return tuple(node for node in self.nodes if node not in self.lookups)


@dataclass(frozen=True)
class LayerCall:
    """One use of a layer, with the geometry of the convolution that it may be.

    Attributes
    ----------
    layer : Layer
    node : str
        The graph node.
    stride, dilation : tuple of int
        One per spatial axis; empty for linear layers.
    padding : tuple of (before, after)
        Zeros put before and after each spatial axis; differs between the two sides only for
        `padding="same"` with an odd total. Empty for linear layers.
    groups : int
    """

    layer: Layer
    node: str
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    @property
    def is_lookup(self) -> bool:
        """Whether token ids enter, and the rows that they name leave."""
        return self.node in self.layer.lookups


def rows(layer: Layer, weight: Tensor) -> Tensor:
    """The weight as a matrix with one row per output channel: `(channels, fan_in)`.

    The inverse of `from_rows`. A view where strides allow it.
    """
    return weight.t() if layer.transposed else weight.reshape(layer.channels, layer.fan_in)


def from_rows(layer: Layer, matrix: Tensor) -> Tensor:
    """The weight in its stored shape, contiguous, from a matrix `(channels, fan_in)`; inverse of `rows`."""
    return (matrix.t() if layer.transposed else matrix.reshape(layer.shape)).contiguous()
