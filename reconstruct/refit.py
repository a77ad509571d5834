"""Steps that fit the codes of a layer best on the inputs that it has seen."""

from __future__ import annotations

import torch
from torch import Tensor

from ..quantizer import QuantizedRows, StepUnit
from .cells import cells_of, sums_of_sharing, with_factors, with_steps
from .finalize import StoredLayer, StoredPart

__all__ = ["refitted"]

RIDGE = 1e-6
"""Of the mean of a row's diagonal: decides the steps of codes that are nothing, or another point's again."""
MOST_STEPS = 256
"""Of a row: solving for more takes longer than all else that GPTQ does."""
MOST_NUMBERS = 2**24
"""Of products of codes and Gram matrix, or of matrices of single rows, that are held at once."""


def refitted(layer: StoredLayer, target: Tensor, gram: Tensor) -> StoredLayer:
    """The layer with its codes and the steps of least error ``(w - q) H (w - q)'`` of every channel.

    A row q is ``sum_k s_k c_k`` over its points and groups, so that its steps solve

        sum_l (c_k H c_l') s_l = c_k H w'      for all k.

    Where channels share a step, run through several strips of inputs, or have more steps than that is worth,
    all steps take the one factor that is best, ``f = (q H w') / (q H q')``.

    Parameters
    ----------
    layer : StoredLayer
    target : Tensor, shape (convolution groups, channels per group, fan_in)
    gram : Tensor, shape (convolution groups, fan_in, fan_in)
    """
    is_cut = layer.cut is not None and layer.cut.inputs > 0
    scaled = _scaled(layer, target, gram) if is_cut or any(map(_takes_factor, layer.parts)) else layer
    if is_cut:
        return scaled
    flat = target.flatten(0, 1)
    fan_in = flat.shape[1]
    # Rows of several convolution groups come with a matrix each.
    matrix = fan_in**2 if len(gram) > 1 else 0
    steps = []
    for part, other in zip(layer.parts, scaled.parts, strict=True):
        if _takes_factor(part):
            steps.append(other.rows.steps)
            continue
        values = max(matrix, _steps_of_row(part) * fan_in)
        rows = torch.arange(len(part.index), device=flat.device)
        pieces = torch.split(rows, max(1, MOST_NUMBERS // values))
        found = [_steps(part.rows.channels(piece), flat, gram, part.index[piece]) for piece in pieces]
        steps.append(torch.cat(found, 1))
    return with_steps(layer, steps)


def _steps_of_row(part: StoredPart) -> int:
    points, _, groups = part.rows.steps.shape
    return points * groups


def _takes_factor(part: StoredPart) -> bool:
    return part.rows.option.unit is StepUnit.TENSOR or _steps_of_row(part) > MOST_STEPS


def _scaled(layer: StoredLayer, target: Tensor, gram: Tensor) -> StoredLayer:
    stored = layer.dequantize().view_as(target)
    product = stored @ gram
    along, size = ((product * each).sum(2).flatten() for each in (target, stored))
    along, size = sums_of_sharing(layer, along), sums_of_sharing(layer, size)
    is_fit = (along > 0) & (size > 0)
    return with_factors(layer, torch.where(is_fit, along / size.where(is_fit, 1.0), 1.0))


def _steps(rows: QuantizedRows, target: Tensor, gram: Tensor, index: Tensor) -> Tensor:
    """Steps, shape (points, n, groups), of the rows `index`, shape (n,), of the layer."""
    codes = torch.stack([cells_of(each.to(target.dtype), rows.option) for each in rows.codes], 2)
    # (n, groups, points, size): which step, and the weights that have it.
    count, groups, points, size = codes.shape
    own = gram[index // (len(target) // len(gram))] if len(gram) > 1 else gram
    fan_in = target.shape[1]
    product = torch.empty(count, groups, points, fan_in, dtype=target.dtype, device=target.device)
    for group in range(groups):
        begin, end = group * size, min((group + 1) * size, fan_in)
        mine = codes[:, group, :, : end - begin]
        if len(gram) > 1:
            product[:, group] = mine @ own[:, begin:end]
        else:
            # One product of all rows reads the matrix once.
            product[:, group] = (mine.flatten(0, 1) @ gram[0, begin:end]).view(count, points, fan_in)
    product = product.flatten(1, 2)
    along = (product @ target[index, :, None])[:, :, 0].double()
    cells = cells_of(product.flatten(0, 1), rows.option).view(count, groups * points, groups, size)
    normal = torch.einsum("nkgs,ngps->nkgp", cells, codes).flatten(2).double()
    steps = rows.steps.permute(1, 2, 0).flatten(1).double()
    diagonal = normal.diagonal(dim1=1, dim2=2)
    ridge = (RIDGE * diagonal.mean(1)).clamp_min(torch.finfo(torch.float32).tiny)
    normal = normal + torch.diag_embed(ridge[:, None].expand_as(diagonal))
    solved: Tensor = torch.linalg.solve(normal, along + ridge[:, None] * steps)
    solved = solved.where(solved.isfinite().all(1, keepdim=True), steps)
    return solved.view(count, groups, points).permute(2, 0, 1).float().contiguous()
