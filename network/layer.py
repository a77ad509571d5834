"""A layer: a weight tensor that some nodes of the program multiply with, and how those nodes apply it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

__all__ = ["Layer", "LayerCall", "from_rows", "rows"]


@dataclass(frozen=True)
class Layer:
    """One weight of the network that can be stored in low bits.

    A weight that several nodes read is one layer with several `nodes`.

    Attributes
    ----------
    name : str
        The weight's qualified name without its last part `.weight`.
    kind : "conv" or "linear"
    weight, bias : str
        Keys into `Network.tensors`. `bias` is None when there is none, or when other nodes read it too.
    shape : tuple of int
        The weight as stored: `(out, in / groups, *kernel)` for a convolution, `(out, in)` for a linear
        layer, `(in, out)` when `transposed`.
    transposed : bool
        The program computes `x @ weight` (addmm, matmul) rather than `x @ weight.T`.
    channels : int
        Output channels.
    fan_in : int
        Weights per output channel; `channels * fan_in` is the number of weights.
    groups : int
        Groups of a convolution, 1 for a linear layer.
    macs : int
        Multiply-accumulates for one sample, summed over `nodes`.
    nodes : tuple of str
        The graph nodes that apply the weight, in execution order.
    """

    name: str
    kind: Literal["conv", "linear"]
    weight: str
    bias: str | None
    shape: tuple[int, ...]
    transposed: bool
    channels: int
    fan_in: int
    groups: int
    macs: int
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class LayerCall:
    """One use of a layer, with the geometry of the convolution it performs.

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


def rows(layer: Layer, weight: Tensor) -> Tensor:
    """The weight as a matrix with one row per output channel: `(channels, fan_in)`.

    The inverse of `from_rows`. A view where strides allow it.
    """
    return weight.t() if layer.transposed else weight.reshape(layer.channels, layer.fan_in)


def from_rows(layer: Layer, matrix: Tensor) -> Tensor:
    """The weight in its stored shape, contiguous, from a matrix `(channels, fan_in)`; inverse of `rows`."""
    return (matrix.t() if layer.transposed else matrix.reshape(layer.shape)).contiguous()
