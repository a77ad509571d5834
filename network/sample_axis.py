"""Where in a value the samples are: most often along the first axis, but not always."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .data import Data
from .layer import LayerCall
from .network import Network
from .sites import data_values

__all__ = ["SAMPLES_FIRST", "SampleAxis", "different_samples", "is_by_sample", "sample_axes"]

CLOSE = 1e-2
"""Share of its norm by which a value of one sample may change with what else is in the batch."""


@dataclass(frozen=True)
class SampleAxis:
    """The axis of the samples in a value.

    Attributes
    ----------
    axis : int
    leading : bool
        Where other positions are folded into that axis: whether these come sample after sample, or all
        samples of the first position come first.
    shared : bool
        Whether all samples have the value in common, such as queries that were learned: it has no such axis.
    """

    axis: int = 0
    leading: bool = True
    shared: bool = False

    def first(self, value: Tensor, samples: int) -> Tensor | None:
        """The value with the samples, and then what is folded into them, first; None where that cannot be."""
        if self.shared and samples > 1:
            return None
        moved = value.movedim(self.axis, 0) if self.axis else value
        if len(moved) == samples:
            return moved
        if len(moved) % samples:
            return None
        folded = len(moved) // samples
        if self.leading:
            return moved.reshape(samples, folded, *moved.shape[1:])
        return moved.reshape(folded, samples, *moved.shape[1:]).transpose(0, 1)


SAMPLES_FIRST = SampleAxis()
SHARED = SampleAxis(shared=True)


def sample_axes(network: Network, data: Data) -> dict[str, SampleAxis]:
    """Where the samples are in every value, and in what enters every use of a linear layer.

    Attention of PyTorch's own, for one, has tokens first and then folds the samples into them. What two
    samples have twice as much of is the axis, and which half of it one sample alone has is the order. Values
    of which that says nothing, and those of a network whose weights are streamed, have the samples first.
    What does not depend on the input, and is no longer for two samples, is shared.

    Returns
    -------
    dict of str to SampleAxis
        By name of the value or of the layer's node; those that have the samples first in order are left out.
    """
    moving = data_values(network.graph)
    if network.is_streamed:
        return {node.name: SHARED for node in network.graph.nodes if node.name not in moving}
    pair = different_samples(data.inputs).to(network.device)
    alone: dict[str, Tensor] = {}
    found: dict[str, SampleAxis] = {}

    def compare(name: str, both: Tensor) -> None:
        axis = SAMPLES_FIRST
        if name in alone:
            # What is computed from weights alone may have been repeated for every sample.
            is_shared = name not in moving and alone[name].shape == both.shape
            axis = SHARED if is_shared else _axis(alone[name], both)
        if axis != SAMPLES_FIRST:
            found[name] = axis

    _visit(network, pair[:1], alone.__setitem__)
    _visit(network, pair, compare)
    return found


def different_samples(inputs: Tensor) -> Tensor:
    """The first sample and one that differs from it; where none does, the first one backwards."""
    differs = (inputs != inputs[:1]).flatten(1).any(1)
    if bool(differs.any()):
        return inputs[[0, int(differs.int().argmax())]]
    return torch.cat([inputs[:1], inputs[:1].flip(*range(1, inputs.ndim))])


def is_by_sample(one: Tensor, two: Tensor, three: Tensor) -> bool:
    """Whether a value has its samples first, perhaps folded with the axis after them, sample after sample.

    Parameters
    ----------
    one, two, three : Tensor
        The value for one sample, for it and another, and for any three.
    """
    if one.ndim == 0 or len(two) != 2 * len(one) or len(three) != 3 * len(one):
        return False
    return one.shape[1:] == two.shape[1:] and _distance(two[: len(one)], one) <= CLOSE


def _visit(network: Network, inputs: Tensor, visit: Callable[[str, Tensor], None]) -> None:
    """Be told every value by name; of a linear layer what enters it, for it leaves in the same order."""
    entered: set[str] = set()

    def enter(call: LayerCall, entering: Tensor, leaving: Tensor) -> Tensor:
        if call.layer.kind != "conv":
            entered.add(call.node)
            visit(call.node, entering)
        return leaving

    def watch(name: str, value: Tensor) -> Tensor:
        if name not in entered:
            visit(name, value)
        return value

    with torch.inference_mode():
        network.run(inputs, on_layer=enter, on_value=watch)


def _axis(one: Tensor, two: Tensor) -> SampleAxis:
    if one.ndim != two.ndim:
        return SAMPLES_FIRST
    differing = [axis for axis in range(one.ndim) if one.shape[axis] != two.shape[axis]]
    if len(differing) != 1 or two.shape[differing[0]] != 2 * one.shape[differing[0]]:
        return SAMPLES_FIRST
    (axis,) = differing
    length = one.shape[axis]
    after = _distance(two.narrow(axis, 0, length), one)
    between = _distance(two.movedim(axis, 0)[::2].movedim(0, axis), one)
    return SampleAxis(axis, after <= between)


def _distance(value: Tensor, other: Tensor) -> float:
    """Norm of the difference over the norm of the other."""
    value, other = (torch.view_as_real(x) if x.is_complex() else x.double() for x in (value, other))
    norm = float(other.norm())
    return float((value - other).norm()) / (norm if norm > 0 else 1.0)
