"""The nodes of a layer compute its weight to the last bit, from integers of the planned width."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from apportion.allocator import LayerCut, Plan
from apportion.export.onnx_builder import Builder, packed_integers
from apportion.export.onnx_weights import weight_nodes
from apportion.network import Layer, Network, from_rows
from apportion.quantizer import Quantizer, parse_option
from apportion.reconstruct import StoredLayer, StoredPart, finalize_nearest

Assign = Callable[[Mapping[str, Sequence[str]]], Plan]
TYPES = {2: TensorProto.INT2, 4: TensorProto.INT4, 8: TensorProto.INT8}


def computed(layer: Layer, built: Builder) -> np.ndarray:
    """What onnxruntime makes of the nodes."""
    output = helper.make_tensor_value_info(layer.weight, TensorProto.FLOAT, layer.shape)
    graph = helper.make_graph(built.nodes, "weight", [], [output], built.tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=13)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {})[0]


def matrix_layer(channels: int, fan_in: int, *, transposed: bool = False) -> Layer:
    shape = (fan_in, channels) if transposed else (channels, fan_in)
    return Layer("matrix", "linear", "matrix.weight", None, shape, transposed, channels, fan_in, 1, 1, ())


def stored_layer(layer: Layer, options: Sequence[str], inputs: int = 0) -> StoredLayer:
    """A random weight whose strips have these options, in turn."""
    weight = torch.randn(layer.channels, layer.fan_in, generator=torch.Generator().manual_seed(1))
    cut = LayerCut(layer.channels, layer.fan_in, inputs)
    rows = cut.to_rows(weight)
    chosen = list(islice(cycle(options), cut.strips))
    parts = []
    for text in dict.fromkeys(chosen):
        index = torch.tensor(cut.strip_rows([at for at, other in enumerate(chosen) if other == text]))
        parts.append(StoredPart(index, Quantizer().quantize(rows[index], parse_option(text))))
    return StoredLayer(layer.name, tuple(parts), cut)


def same_weight(layer: Layer, stored: StoredLayer) -> Builder:
    built = weight_nodes(layer, stored, prefix="w")
    assert np.array_equal(computed(layer, built), from_rows(layer, stored.dequantize()).numpy())
    return built


@pytest.mark.parametrize(
    "option",
    [
        *(f"w{bits}" for bits in range(1, 9)),
        "w1x3",
        "w1t",
        "w1x2g16",
        "w2x2",
        "w3x3",
        "w4t",
        "w5t",
        "w3g16",
        "w7g16",
        "w4x2g13",
    ],
)
@pytest.mark.parametrize("channels", [5, 101])
def test_every_option_gives_its_weight_to_the_last_bit(option: str, channels: int) -> None:
    """A hundred channels are enough for digits, five are not, and their weights fill no whole bytes."""
    layer = matrix_layer(channels, 67)
    same_weight(layer, stored_layer(layer, [option]))


@pytest.mark.parametrize(
    "options", [["w3", "w2x2", "w8"], ["w2", "w5", "w5", "w6", "w7"], ["w4", "w4g16"], ["w1", "w1x3", "w2"]]
)
@pytest.mark.parametrize("channels", [7, 300])
def test_mixed_channels_come_back_in_their_order(options: list[str], channels: int) -> None:
    layer = matrix_layer(channels, 64)
    same_weight(layer, stored_layer(layer, options))


def test_strips_of_inputs_come_back_in_their_order() -> None:
    layer = matrix_layer(24, 96)
    same_weight(layer, stored_layer(layer, ["w3", "w8", "w2x2"], inputs=16))


def test_weights_with_their_inputs_first_are_transposed() -> None:
    layer = matrix_layer(12, 40, transposed=True)
    same_weight(layer, stored_layer(layer, ["w3", "w8"]))


def test_convolutions_have_their_shape(network: Network, assign: Assign) -> None:
    orders = (["w3", "w2x2", "w8"], ["w2", "w2", "w4"], ["w8", "w2"])
    names = {layer.name: layer.channels for layer in network.layers}
    plan = assign(
        {name: tuple(islice(cycle(orders[at % 3]), count)) for at, (name, count) in enumerate(names.items())}
    )
    for layer, stored in zip(network.layers, finalize_nearest(network, plan).layers, strict=True):
        same_weight(layer, stored)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_floats_are_cast_at_the_end(dtype: torch.dtype) -> None:
    layer = matrix_layer(4, 16)
    built = weight_nodes(layer, stored_layer(layer, ["w4"]), prefix="w", dtype=dtype)
    assert built.nodes[-1].op_type == "Cast"


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_integers_have_the_type_of_their_width(bits: int) -> None:
    layer = matrix_layer(64, 64)
    built = same_weight(layer, stored_layer(layer, [f"w{bits}"]))
    codes = next(tensor for tensor in built.tensors if tensor.name.endswith("codes"))
    assert codes.data_type == TYPES[bits]
    assert built.stored_bits == parse_option(f"w{bits}").size_bits(64, 64)
    assert built.notes == {}


@pytest.mark.parametrize("bits", [1, 3, 5, 6, 7])
def test_many_weights_of_another_width_take_no_more_than_their_width(bits: int) -> None:
    layer = matrix_layer(64, 64)
    built = same_weight(layer, stored_layer(layer, [f"w{bits}"]))
    assert built.stored_bits == parse_option(f"w{bits}").size_bits(64, 64)
    assert built.notes == {}


@pytest.mark.parametrize("options", [["w1"], ["w3"], ["w5"], ["w2", "w4"]])
def test_what_takes_more_than_planned_says_why(options: list[str]) -> None:
    layer = matrix_layer(10, 20)
    stored = stored_layer(layer, options)
    planned = sum(part.rows.option.size_bits(len(part.index), 20) for part in stored.parts)
    built = same_weight(layer, stored)
    assert built.stored_bits > planned
    assert built.notes


def test_steps_that_half_precision_cannot_hold_stay_in_single() -> None:
    layer = matrix_layer(64, 64)
    stored = stored_layer(layer, ["w4"])
    rows = stored.parts[0].rows
    small = StoredPart(stored.parts[0].index, type(rows)(rows.option, rows.codes, rows.steps * 2.0**-40))
    built = same_weight(layer, StoredLayer(stored.name, (small,), stored.cut))
    assert "steps of 32 bits" in next(iter(built.notes))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_integers_are_packed_lowest_bits_first(bits: int) -> None:
    values = (np.arange(13) % 2**bits).astype(np.int8)
    packed = packed_integers(values, bits)
    assert len(packed) == -(-13 * bits // 8)
    digits = [(int(byte) >> shift) & (2**bits - 1) for byte in packed for shift in range(0, 8, bits)]
    assert digits[:13] == values.tolist()
    assert not any(digits[13:])
