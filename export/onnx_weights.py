"""A stored layer as ONNX nodes: integers of 2, 4 and 8 bits, dequantized, summed and put in order."""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..allocator import LayerCut
from ..network import Layer
from ..quantizer import QuantizedRows, StepUnit
from ..reconstruct import StoredLayer, StoredPart
from .onnx_builder import Builder
from .onnx_parts import merged, stored_width, widened

__all__ = ["weight_nodes"]

LEAST_SAVED_BITS = 4096
"""What storing codes at their true width must save, since the nodes that it takes weigh as much."""


def weight_nodes(
    layer: Layer, stored: StoredLayer, *, prefix: str, dtype: torch.dtype = torch.float32
) -> Builder:
    """Nodes that compute a layer's weight from its codes and steps.

    ONNX has integers of 2, 4 and 8 bits. A code of another width is cut into digits whose widths are the
    powers of two that add up to it (7 bits into 4, 2 and 1, the highest first and signed), so that every
    point i of the rows that share an option is

        sum_k DequantizeLinear(digit_ik, 2^shift_k * steps_i)     steps per row, per group of the row, or one

    Digits of one bit are stored eight in a byte. Codes of one bit, -1 and 1, are the digits 0 and 1 less
    their opposites, both dequantized. Where a layer has few weights of such a width, they are integers of
    the next one instead. Points are added up, rows with different options concatenated, and
    brought into their order by a Gather. The sum is that of `QuantizedRows.dequantize`, term by term, so the
    weight is the same to the last bit.

    Parameters
    ----------
    prefix : str
        What names of values begin with.
    dtype : torch.dtype
        Type of the network's weight.

    Returns
    -------
    Builder
        Its last node gives `Layer.weight`, in the layout of the network's tensor.
    """
    builder = Builder(layer.name, prefix)
    parts = merged([_as_stored(builder, part) for part in stored.parts])
    values = [_rows(builder, part.rows) for part in parts]
    value = values[0] if len(values) == 1 else builder.node("Concat", values, axis=0)
    value = _in_order(builder, value, torch.cat([part.index for part in parts]), stored.cut)
    if layer.transposed:
        value = builder.node("Transpose", [value], perm=(1, 0))
    elif len(layer.shape) > 2:
        value = builder.reshape(value, layer.shape)
    builder.cast(value, dtype)
    builder.nodes[-1].output[0] = layer.weight
    return builder


def _as_stored(builder: Builder, part: StoredPart) -> StoredPart:
    """The part, widened where digits of its true width would not pay."""
    bits = part.rows.option.bits
    wide = stored_width(bits)
    if 0 < (wide - bits) * part.rows.codes[0].numel() < LEAST_SAVED_BITS:
        builder.notes[f"few {bits}-bit weights, as {wide}-bit integers"] = None
        return widened(part)
    return part


def _in_order(builder: Builder, value: str, order: Tensor, cut: LayerCut | None) -> str:
    """Rows as the layer has them, (channels, fan_in), from rows in the given order."""
    if cut is None or not cut.inputs:
        return builder.permuted(value, order.argsort())
    value = builder.reshape(value, (cut.strips, cut.channels, cut.inputs))
    value = builder.permuted(value, (order[:: cut.channels] // cut.channels).argsort())
    value = builder.node("Transpose", [value], perm=(1, 0, 2))
    return builder.reshape(value, (cut.channels, cut.fan_in))


def _digits(bits: int) -> list[int]:
    """Widths of the digits of a code, the highest first."""
    return [width for width in (8, 4, 2, 1) if bits & width]


def _rows(builder: Builder, rows: QuantizedRows) -> str:
    """Points added up: ``sum_i steps[i] * codes[i]``, shape (rows, row weights)."""
    return _sum(builder, [_point(builder, rows, index) for index in range(rows.option.points)])


def _point(builder: Builder, rows: QuantizedRows, index: int) -> str:
    name = f"{rows.option}.{index}"
    steps = _steps(builder, f"{name}.steps", rows, index)
    if rows.option.bits == 1:
        positive = builder.integers(f"{name}.codes", rows.codes[index] > 0, 1)
        negative = builder.node("BitwiseXor", [positive, builder.constant(np.array(1, np.uint8))])
        each = [_dequantize(builder, stored, steps, rows) for stored in (positive, negative)]
        return builder.node("Sub", each)
    digits: list[str] = []
    below = rows.option.bits
    for width in _digits(rows.option.bits):
        below -= width
        # Shifts of signed integers round down, so what is left below the highest digit is never negative.
        codes = rows.codes[index] >> below
        if digits:
            codes = codes & (2**width - 1)
        stored = builder.integers(f"{name}.codes{below or ''}", codes, width, signed=not digits)
        digits.append(_dequantize(builder, stored, builder.times(steps, 2**below), rows))
    return _sum(builder, digits)


def _sum(builder: Builder, values: list[str]) -> str:
    return reduce(lambda total, value: builder.node("Add", [total, value]), values)


def _dequantize(builder: Builder, codes: str, steps: str, rows: QuantizedRows) -> str:
    where: dict[str, Any] = {"axis": 1, "block_size": rows.option.group or rows.codes.shape[2]}
    if rows.option.unit is StepUnit.TENSOR:
        where = {}
    elif rows.option.unit is StepUnit.CHANNEL and not _as_blocks(rows):
        where = {"axis": 0}
    return builder.node("DequantizeLinear", [codes, steps], **where)


def _steps(builder: Builder, name: str, rows: QuantizedRows, index: int) -> str:
    steps = rows.steps[index]
    if rows.option.unit is StepUnit.TENSOR:
        steps = steps[0, 0]
    elif rows.option.unit is StepUnit.CHANNEL and not _as_blocks(rows):
        steps = steps[:, 0]
    return builder.steps(name, steps)


def _as_blocks(rows: QuantizedRows) -> bool:
    """Whether a row with one step is written as one block.

    Of 8-bit weights with steps along an axis onnxruntime makes a product that rounds its inputs to 8 bits.
    """
    return rows.option.bits == 8
