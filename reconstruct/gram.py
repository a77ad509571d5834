"""Gram matrices of what enters a layer: all that its output error depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..network import LayerCall
from .levels import level_weights

__all__ = ["InputGram", "factored", "placed", "position_count", "unfolded"]

# Numbers of one piece of unfolded inputs: larger ones no longer fit the processor's cache.
PIECE = 2**22


@dataclass
class InputGram:
    """Sums over samples and positions of the products of a layer's inputs.

    Where they are levelled, positions whose inputs have an outlying energy count less, see `level_weights`.

    Attributes
    ----------
    gram : Tensor, shape (groups, fan_in, fan_in), float64
        ``2 X D X'`` of the inputs the quantized layer sees, with D the weights of positions; one matrix for
        each group of a convolution.
    cross : Tensor or None, same shape
        ``2 X_float D X'``, where the float network's inputs were given too.
    with_one : bool
        Whether one more input follows that is always 1, as a bias is the weight of; both matrices then have
        a row and a column more.
    half : InputGram or None
        The same sums over one half of the samples, so that what is fitted to these can be judged on the
        others.
    levelled : bool
        Whether positions of outlying energy count less.
    """

    gram: Tensor
    cross: Tensor | None = None
    with_one: bool = False
    half: InputGram | None = None
    levelled: bool = False

    @classmethod
    def empty(
        cls,
        groups: int,
        fan_in: int,
        device: torch.device,
        *,
        cross: bool = False,
        with_one: bool = False,
        levelled: bool = False,
    ) -> InputGram:
        """Sums over nothing."""
        size = fan_in + with_one

        def zeros() -> Tensor:
            return torch.zeros(groups, size, size, dtype=torch.float64, device=device)

        half = cls(zeros(), zeros() if cross else None, with_one)
        return cls(zeros(), zeros() if cross else None, with_one, half, levelled)

    @property
    def is_finite(self) -> bool:
        """Whether all sums are."""
        return all(bool(sums.isfinite().all()) for sums in (self.gram, self.cross) if sums is not None)

    def without(self, other: InputGram) -> InputGram:
        """The sums over all samples but those of another."""
        cross = None if self.cross is None or other.cross is None else self.cross - other.cross
        return InputGram(self.gram - other.gram, cross, self.with_one)

    def plus(self, other: InputGram) -> InputGram:
        """The sums over the samples of both."""
        cross = None if self.cross is None or other.cross is None else self.cross + other.cross
        half = None if self.half is None or other.half is None else self.half.plus(other.half)
        return InputGram(self.gram + other.gram, cross, self.with_one, half, self.levelled)

    def bare(self) -> InputGram:
        """The products without the input that is always 1."""
        if not self.with_one:
            return self
        cross = None if self.cross is None else self.cross[:, :-1, :-1]
        half = None if self.half is None else self.half.bare()
        return InputGram(self.gram[:, :-1, :-1], cross, half=half)

    def add(
        self,
        call: LayerCall,
        entering: Tensor,
        float_entering: Tensor | None = None,
        picked: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> None:
        """Add a batch of inputs of one use of the layer.

        Parameters
        ----------
        picked : Tensor, optional
            Output positions of each sample to add, as `unfolded` takes them; None: all.
        weights : Tensor, shape (samples, positions), optional
            What each of these positions counts; None: all the same.
        """
        size = max(1, PIECE * len(entering) // max(1, _numbers(call, entering, picked)))
        middle = 0 if self.half is None else (len(entering) + 1) // 2
        for begin, end in (0, middle), (middle, len(entering)):
            for start in range(begin, end, size):
                part = slice(start, min(start + size, end))
                inputs = self._inputs(call, entering[part], picked)
                weighted = _levelled(inputs) if self.levelled else inputs
                if weights is not None:
                    weighted = weighted * weights[part].reshape(1, -1, 1)
                gram, cross = 2 * (inputs.mT @ weighted).double(), None
                if float_entering is not None:
                    cross = 2 * (self._inputs(call, float_entering[part], picked).mT @ weighted).double()
                self._add(gram, cross)
                if self.half is not None and end == middle:
                    self.half._add(gram, cross)

    def _add(self, gram: Tensor, cross: Tensor | None) -> None:
        self.gram += gram
        if self.cross is not None and cross is not None:
            self.cross += cross

    def _inputs(self, call: LayerCall, entering: Tensor, picked: Tensor | None) -> Tensor:
        # Sums of squares in 16 bits overflow, or lose what is small in them.
        inputs = unfolded(call, entering, picked).float()
        return torch.nn.functional.pad(inputs, (0, 1), value=1.0) if self.with_one else inputs


def factored(gram: Tensor, damping: float, order: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The Gram matrices with enough on their diagonals to have an inverse, and a Cholesky factor.

    L is lower, and without an order that of the matrix as it is. With one, it is that of the matrix with its
    columns in this order and then in reverse: the upper factor U of its inverse, ``H^-1 = U' U`` in this
    order, is L^-1 with rows and columns in reverse.
    """
    mean = gram.diagonal(dim1=1, dim2=2).mean(1)
    mean = mean.where(mean > 0, 1.0)
    eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    while True:
        damped = gram + (damping * mean)[:, None, None] * eye
        lower, failed = torch.linalg.cholesky_ex(damped if order is None else placed(damped, order.flip(1)))
        if not bool(failed.any()):
            return damped, lower
        damping *= 10


def placed(gram: Tensor, order: Tensor) -> Tensor:
    """Every matrix with its rows and columns in an order, shape (groups, fan_in)."""
    groups = torch.arange(len(gram), device=gram.device)[:, None, None]
    return gram[groups, order[:, :, None], order[:, None, :]]


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


def _levelled(inputs: Tensor) -> Tensor:
    """Inputs times the weight of their position, (groups, positions, fan_in)."""
    weights = level_weights(inputs.square().sum((0, 2)))
    return inputs if weights is None else inputs * weights[None, :, None]


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
