"""The squared error of a layer's output as a quadratic function of its weight and bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from .gram import InputGram

__all__ = ["OutputError"]


@dataclass(frozen=True)
class OutputError:
    """What the inputs of a layer say about the error of any weight.

    With X the layer's inputs in the quantized network and ``W X_f`` the output that is aimed at, the error of
    a row q is, up to a constant,

        2 || q X - w X_f ||^2 = q H q' - 2 q p' + const,    H = 2 X X',    p = w (2 X_f X').

    Where the inputs end with one that is always 1, the last entry of a row is its bias.

    Attributes
    ----------
    gram : Tensor, shape (groups, inputs, inputs)
        H, one for each group of a convolution.
    product : Tensor, shape (groups, channels / groups, inputs)
        p of every channel.
    """

    gram: Tensor
    product: Tensor

    @classmethod
    def of(cls, inputs: InputGram, target: Tensor) -> Self:
        """The error against the outputs of a weight.

        Parameters
        ----------
        inputs : InputGram
            With a cross product, the outputs on the float network's inputs are aimed at.
        target : Tensor, shape (channels, inputs)
            The float weight, with the bias as its last column where the inputs end with a 1.
        """
        groups, size = len(inputs.gram), inputs.gram.shape[1]
        cross = inputs.gram if inputs.cross is None else inputs.cross
        return cls(inputs.gram, target.double().view(groups, -1, size) @ cross)

    def of_rows(self, rows: Tensor) -> Tensor:
        """``q H q' - 2 q p'`` of every channel, shape (channels,), float64."""
        given = rows.to(self.gram.dtype).view_as(self.product)
        return ((given @ self.gram - 2 * self.product) * given).sum(2).flatten()

    def slope(self, rows: Tensor) -> Tensor:
        """Half the derivative of `of_rows`: ``q H - p``, of the shape of `rows`."""
        given = rows.view_as(self.product)
        return (given @ self.gram - self.product).view_as(rows)

    def best_bias(self, rows: Tensor) -> Tensor:
        """The bias of least error for the weights of every channel, shape (channels,), float64.

        ``b = mean(w x_f) + b_f - mean(q x)``: the last of the inputs is 1.
        """
        given = rows.double().view(*self.product.shape[:2], -1)
        total, count = self.gram[:, -1, :-1, None], self.gram[:, -1, -1, None]
        return ((self.product[:, :, -1] - (given @ total)[:, :, 0]) / count).flatten()

    def at_best_bias(self) -> OutputError:
        """The error as a function of the weights alone, every bias being the best for them.

        ``H - t t' / n`` and ``p - p_b t / n`` with t the sum of the n inputs: a product of centred inputs.
        """
        total, count = self.gram[:, -1, None, :-1], self.gram[:, -1, -1, None, None]
        gram = self.gram[:, :-1, :-1] - total.mT @ total / count
        return OutputError(gram, self.product[:, :, :-1] - self.product[:, :, -1:] @ total / count)

    def around(self, rows: Tensor) -> OutputError:
        """The error above that of some rows, as a function of how far other rows q are from these r.

        ``(q - r) H (q - r)' - 2 (q - r) (p - r H)'``: where both are near the best, the terms of `of_rows`
        are many times what they differ by, and single precision leaves nothing of that.
        """
        given = rows.to(self.gram.dtype).view_as(self.product)
        return OutputError(self.gram, self.product - given @ self.gram)

    def single(self) -> OutputError:
        """The same in single precision, in units of the mean diagonal of H."""
        mean = self.gram.diagonal(dim1=1, dim2=2).mean()
        scale = torch.where(mean > 0, mean, torch.ones_like(mean))
        return OutputError((self.gram / scale).float(), (self.product / scale).float())
