"""Products with low-bit weights by onnxruntime's integer kernels, in place of products with floats."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..network import Layer
from ..quantizer import QuantizedRows, StepUnit
from ..reconstruct import StoredLayer
from .onnx_builder import Builder, packed_integers
from .onnx_parts import merged, stored_width, widened

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

__all__ = ["MICROSOFT", "use_integer_kernels"]

MICROSOFT = "com.microsoft"
"""Domain of onnxruntime's own operators."""
BLOCKS = (16, 32, 64, 128, 256)
"""Input weights per step that the kernel takes."""
STEP_BITS = 32
EIGHT_BIT_INPUTS = 4
"""The kernel's accuracy level at which it rounds what enters to 8-bit integers, block by block."""


def use_integer_kernels(
    model: ModelProto, layers: Mapping[str, tuple[Layer, StoredLayer]]
) -> dict[str, Builder]:
    """Replace matrix products of an open graph by MatMulNBits, where layer and graph allow it.

    The rows of a linear layer that share an option are one product for each point, of 2-, 4- or 8-bit
    weights (others take the next width) with inputs that the kernel rounds to 8 bits:

        y = Gather(Concat_parts(sum_i MatMulNBits(x, codes_i, steps_i)), order) + bias

    Convolutions, strips of inputs, groups that are no multiples of 16 inputs, and weights that are used more
    than once keep their float products.

    Parameters
    ----------
    model : ModelProto
        As `open_graph` makes it; its nodes are changed in place.
    layers : mapping
        By the name of the weight.

    Returns
    -------
    dict of str to Builder
        Of the replaced layers, by the name of the weight: the tensors that the new nodes read.
    """
    replaced: dict[str, Builder] = {}
    for index, (name, (layer, stored)) in enumerate(layers.items()):
        if not _fits(layer, stored):
            continue
        found = _product(model.graph, layer)
        if found is None:
            continue
        product, between = found
        builder = Builder(layer.name, f"k{index}")
        value = _multiplied(builder, product.input[0], stored)
        if len(product.input) > 2:
            value = builder.node("Add", [value, product.input[2]])
        builder.nodes[-1].output[0] = product.output[0]
        _put(model.graph, product, builder.nodes)
        if between is not None:
            model.graph.node.remove(between)
        builder.nodes.clear()
        replaced[name] = builder
    return replaced


def _fits(layer: Layer, stored: StoredLayer) -> bool:
    groups = [part.rows.option.group for part in stored.parts]
    return (
        layer.kind == "linear"
        and (stored.cut is None or not stored.cut.inputs)
        and all(group % BLOCKS[0] == 0 for group in groups)
    )


def _product(graph: GraphProto, layer: Layer) -> tuple[NodeProto, NodeProto | None] | None:
    """The one product with a weight, and the transposition before it; None where it is used otherwise."""
    from onnx import helper

    node = _only_reader(graph, layer.weight)
    if node is None:
        return None
    between = None
    transposed = layer.transposed
    if node.op_type == "Transpose" and not transposed:
        between, node, transposed = node, _only_reader(graph, node.output[0]), True
    if node is None:
        return None
    weight = layer.weight if between is None else between.output[0]
    if len(node.input) < 2 or node.input[1] != weight:
        return None
    if node.op_type == "MatMul" and transposed:
        return node, between
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    plain = given.get("alpha", 1.0) == given.get("beta", 1.0) == 1.0 and not given.get("transA", 0)
    if node.op_type == "Gemm" and plain and bool(given.get("transB", 0)) != transposed:
        return node, between
    return None


def _only_reader(graph: GraphProto, value: str) -> NodeProto | None:
    readers = [node for node in graph.node if value in node.input]
    return readers[0] if len(readers) == 1 else None


def _put(graph: GraphProto, product: NodeProto, nodes: list[NodeProto]) -> None:
    place = next(index for index, node in enumerate(graph.node) if node is product)
    graph.node.remove(product)
    for node in reversed(nodes):
        graph.node.insert(place, node)


def _multiplied(builder: Builder, source: str, stored: StoredLayer) -> str:
    """The products with all parts, channels in order."""
    for bits in sorted({part.rows.option.bits for part in stored.parts}):
        if stored_width(bits) > bits:
            builder.notes[f"{bits}-bit weights for {stored_width(bits)}-bit kernels"] = None
    parts = merged([widened(part) for part in stored.parts])
    values = []
    for part in parts:
        points = range(part.rows.option.points)
        products = [_point(builder, source, part.rows, index) for index in points]
        values.append(reduce(lambda total, value: builder.node("Add", [total, value]), products))
    if len(values) == 1:
        return builder.permuted(values[0], parts[0].index.argsort(), axis=-1)
    order = torch.cat([part.index for part in parts]).argsort()
    return builder.permuted(builder.node("Concat", values, axis=-1), order, axis=-1)


def _point(builder: Builder, source: str, rows: QuantizedRows, index: int) -> str:
    name, bits = f"{rows.option}.{index}", rows.option.bits
    codes = rows.codes[index]
    channels, fan_in = codes.shape
    block = _block(fan_in, bits, rows.option.group)
    count = -(-fan_in // block)
    # The kernel takes weights from 0 up, less half their range.
    half = 2 ** (bits - 1)
    full = torch.full((channels, count * block), half, dtype=torch.int16)
    full[:, :fan_in] = codes.to(torch.int16) + half
    unsigned = full.numpy().astype(np.uint8)
    packed = packed_integers(unsigned.view(np.int8), bits).reshape(channels, count, block * bits // 8)
    weights = builder.tensor(f"{name}.codes", packed)
    steps = _steps(builder, f"{name}.steps", rows, index, block, count)
    sizes = {"K": fan_in, "N": channels, "bits": bits, "block_size": block}
    return builder.node(
        "MatMulNBits",
        [source, weights, steps],
        domain=MICROSOFT,
        accuracy_level=EIGHT_BIT_INPUTS,
        **sizes,
    )


def _block(fan_in: int, bits: int, group: int) -> int:
    """Weights per step of the kernel: those of a group, or what takes the least space."""
    allowed = [block for block in BLOCKS if not group or group % block == 0]
    if group:
        return max(allowed)
    return min(allowed, key=lambda block: -(-fan_in // block) * (block * bits + STEP_BITS))


def _steps(builder: Builder, name: str, rows: QuantizedRows, index: int, block: int, count: int) -> str:
    """Steps of every block, shape (channels, blocks), in single precision."""
    steps = rows.steps[index]
    channels = rows.codes.shape[1]
    if rows.option.unit is StepUnit.GROUP:
        # A group is one block or several.
        steps = steps.repeat_interleave(rows.option.group // block, 1)[:, :count]
    stored = builder.steps(name, steps)
    if tuple(steps.shape) == (channels, count):
        return stored
    shape = builder.constant(np.array([channels, count], np.int64))
    return builder.node("Expand", [stored, shape])
