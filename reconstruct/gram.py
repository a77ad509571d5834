"""Gram matrices of what enters a layer: all that its output error depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..network import LayerCall

__all__ = ["InputGram", "position_count", "unfolded"]

# Numbers of one piece of unfolded inputs: larger ones no longer fit the processor's cache.
PIECE = 2**22


@dataclass
class InputGram:
    """Sums over samples and positions of the products of a layer's inputs.

    Attributes
    ----------
    gram : Tensor, shape (groups, fan_in, fan_in), float64
        ``2 X X'`` of the inputs the quantized layer sees; one matrix for each group of a convolution.
    cross : Tensor or None, same shape
        ``2 X_float X'``, where the float network's inputs were given too.
    with_one : bool
        Whether one more input follows that is always 1, as a bias is the weight of; both matrices then have
        a row and a column more.
    """

    gram: Tensor
    cross: Tensor | None = None
    with_one: bool = False

    @classmethod
    def empty(
        cls,
        groups: int,
        fan_in: int,
        device: torch.device,
        *,
        cross: bool = False,
        with_one: bool = False,
    ) -> InputGram:
        """Sums over nothing."""
        size = fan_in + with_one
        zeros = torch.zeros(groups, size, size, dtype=torch.float64, device=device)
        return cls(zeros, torch.zeros_like(zeros) if cross else None, with_one)

    def add(
        self,
        call: LayerCall,
        entering: Tensor,
        float_entering: Tensor | None = None,
        picked: Tensor | None = None,
    ) -> None:
        """Add a batch of inputs of one use of the layer.

        Parameters
        ----------
        picked : Tensor, optional
            Output positions of each sample to add, as `unfolded` takes them; None: all.
        """
        size = max(1, PIECE * len(entering) // max(1, _numbers(call, entering, picked)))
        for start in range(0, len(entering), size):
            part = slice(start, start + size)
            inputs = self._inputs(call, entering[part], picked)
            self.gram += 2 * (inputs.mT @ inputs).double()
            if self.cross is not None and float_entering is not None:
                self.cross += 2 * (self._inputs(call, float_entering[part], picked).mT @ inputs).double()

    def _inputs(self, call: LayerCall, entering: Tensor, picked: Tensor | None) -> Tensor:
        inputs = unfolded(call, entering, picked)
        return torch.nn.functional.pad(inputs, (0, 1), value=1.0) if self.with_one else inputs


def position_count(call: LayerCall, entering: Tensor) -> int:
    """Output positions of a sample: of a linear layer, its tokens."""
    if call.layer.kind != "conv":
        return math.prod(entering.shape[1:-1])
    return math.prod(_windows(call, entering[:1]).shape[2 : 2 + len(call.stride)])


def unfolded(call: LayerCall, entering: Tensor, picked: Tensor | None = None) -> Tensor:
    """Inputs of a layer as rows that its weight rows multiply with.

    Parameters
    ----------
    entering : Tensor
        `(samples, in, *spatial)` for a convolution, `(samples, ..., in)` for a linear layer.
    picked : Tensor, optional
        Indices below `position_count`: the output positions of every sample that are wanted.

    Returns
    -------
    Tensor, shape (groups, positions, fan_in)
        ``output[position, channel] = <rows[position], weight[channel]>`` with the rows of the channel's
        group.
    """
    if call.layer.kind != "conv":
        tokens = entering.reshape(len(entering), -1, entering.shape[-1])
        return (tokens if picked is None else tokens[:, picked]).reshape(1, -1, entering.shape[-1])
    values = _windows(call, entering)
    rank = len(call.stride)
    if picked is not None:
        # Picked before anything is copied: windows overlap, so that all of them take much memory.
        places: tuple[Tensor, ...] = torch.unravel_index(picked, values.shape[2 : 2 + rank])
        values = values[(slice(None),) * 2 + places]
    values = values.reshape(len(values), call.groups, -1, *values.shape[2:])
    spatial = values.ndim - rank - 3
    values = values.permute(1, 0, *range(3, 3 + spatial), 2, *range(3 + spatial, 3 + spatial + rank))
    return values.reshape(call.groups, -1, call.layer.fan_in)


def _windows(call: LayerCall, entering: Tensor) -> Tensor:
    """A view of what each output position sees, shape (samples, in, *positions, *kernel)."""
    values = torch.nn.functional.pad(entering, [side for pair in reversed(call.padding) for side in pair])
    geometry = zip(call.layer.shape[2:], call.stride, call.dilation, strict=True)
    for axis, (size, stride, dilation) in enumerate(geometry):
        values = values.unfold(2 + axis, (size - 1) * dilation + 1, stride)[..., ::dilation]
    return values


def _numbers(call: LayerCall, entering: Tensor, picked: Tensor | None) -> int:
    """Numbers that `unfolded` returns."""
    positions = position_count(call, entering) if picked is None else len(picked)
    return len(entering) * positions * call.groups * call.layer.fan_in
