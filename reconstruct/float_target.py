"""Float weights that make up for errors in a layer's inputs, as far as other samples confirm it."""

from __future__ import annotations

import torch
from torch import Tensor

from .gram import InputGram, factored

__all__ = ["aimed_weight"]

RIDGES = (0.01, 0.1, 1.0, 10.0)
"""Added to the diagonal of the Gram matrix, in units of its mean."""
FEWEST_ROWS = 64
"""Rows of a group by which ridge and share are chosen; evenly spaced ones stand for more."""


def aimed_weight(weight: Tensor, inputs: InputGram) -> Tensor:
    """The weight whose output on the quantized network's inputs X comes near that of `weight` on X_float.

    With the ridge r I and a share a of the move,

        w + a w (X_float - X) X' (X X' + r I)^-1.

    All of the move (a = 1, r small) fits its few hundred samples nearly exactly where they are hardly more
    than the layer has inputs, whatever it does to others. Ridge and share are therefore those that best bring
    the output of one half of the samples to the float network's when fitted to the other half, and the move
    is then taken from all samples. Where none does, the weight stays.

    Parameters
    ----------
    weight : Tensor, shape (groups, rows, fan_in)
    inputs : InputGram
        With cross products and the sums of one half of the samples.

    References
    ----------
    Li et al., "GPTAQ: efficient finetuning-free quantization for asymmetric calibration", ICML 2025, aims so
    at the float output; the share is the closed form of a least squares problem in one unknown.
    """
    assert inputs.cross is not None
    assert inputs.half is not None
    few = weight[:, :: max(1, weight.shape[1] // FEWEST_ROWS)]
    folds = inputs.half, inputs.without(inputs.half)
    best_gain, best = 0.0, (0.0, 0.0)
    for ridge in RIDGES:
        along = size = 0.0
        for fitted, judged in (folds, folds[::-1]):
            move = _move(few, fitted, ridge)
            along += float((move * (few @ _gap(judged))).sum())
            size += float(((move @ judged.gram.float()) * move).sum())
        share = min(max(along / size, 0.0), 1.0) if size > 0 else 0.0
        gain = share * (2 * along - share * size)
        if gain > best_gain:
            best_gain, best = gain, (ridge, share)
    ridge, share = best
    return weight + share * _move(weight, inputs, ridge) if share > 0 else weight


def _gap(inputs: InputGram) -> Tensor:
    """``2 (X_float - X) X'`` of every group."""
    assert inputs.cross is not None
    return (inputs.cross - inputs.gram).float()


def _move(weight: Tensor, inputs: InputGram, ridge: float) -> Tensor:
    """All of the move at a ridge."""
    _, lower = factored(inputs.gram, ridge)
    return torch.cholesky_solve((weight @ _gap(inputs)).mT, lower.float()).mT
