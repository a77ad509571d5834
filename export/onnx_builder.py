"""Nodes and tensors of one layer, collected under names of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

__all__ = ["Builder", "packed_integers"]

FLOATS = {torch.float16: "FLOAT16", torch.float64: "DOUBLE"}


@dataclass
class Builder:
    """What computes one value: nodes in order, and the tensors that they read.

    Parameters
    ----------
    name : str
        What names of tensors begin with.
    prefix : str
        What names of values begin with; short, as they are many.

    Attributes
    ----------
    nodes : list of NodeProto
    tensors : list of TensorProto
    notes : dict of str to None
        Where more is stored than the plan says, and why; in order, each once.
    """

    name: str
    prefix: str
    nodes: list[NodeProto] = field(default_factory=list)
    tensors: list[TensorProto] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)

    @property
    def stored_bits(self) -> int:
        """Bits of the data of all tensors."""
        return sum(8 * len(tensor.raw_data) for tensor in self.tensors)

    def node(self, kind: str, inputs: Sequence[str], domain: str = "", **attributes: Any) -> str:
        """Append a node; returns the name of its value."""
        from onnx import helper

        value = f"{self.prefix}/{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [value], domain=domain or None, **attributes))
        return value

    def tensor(self, name: str, values: NDArray[Any]) -> str:
        """Store an array; returns its name."""
        from onnx import numpy_helper

        self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(values), f"{self.name}/{name}"))
        return self.tensors[-1].name

    def constant(self, values: NDArray[Any]) -> str:
        """Append a constant that belongs to the nodes, not to what is stored of the layer."""
        from onnx import numpy_helper

        return self.node("Constant", [], value=numpy_helper.from_array(values))

    def integers(self, name: str, values: Tensor, bits: int, *, signed: bool = True) -> str:
        """Store integers of 1, 2, 4 or 8 bits; returns the name of a value of the shape of `values`.

        Those of one bit have no type of their own and are unpacked by nodes, once, when the file is loaded.
        """
        from onnx import TensorProto

        packed = packed_integers(values.cpu().numpy(), bits)
        if bits == 1:
            return self._unpacked(self.tensor(name, packed[:, None]), values.shape)
        tensor = TensorProto(name=f"{self.name}/{name}", dims=values.shape)
        tensor.data_type = TensorProto.DataType.Value(f"{'' if signed else 'U'}INT{bits}")
        tensor.raw_data = packed.tobytes()
        self.tensors.append(tensor)
        return tensor.name

    def _unpacked(self, stream: str, shape: torch.Size) -> str:
        places = self.constant(np.arange(8, dtype=np.uint8))
        bits = self.node("BitShift", [stream, places], direction="RIGHT")
        bits = self.node("BitwiseAnd", [bits, self.constant(np.array(1, np.uint8))])
        if shape.numel() % 8:
            ends = [self.constant(np.array([end], np.int64)) for end in (0, shape.numel())]
            bits = self.node("Slice", [self.reshape(bits, (-1,)), *ends])
        return self.reshape(bits, shape)

    def steps(self, name: str, steps: Tensor) -> str:
        """Store steps in half precision where that is exact; returns the name of a value in single precision.

        Not given to DequantizeLinear in half precision: onnxruntime then mistakes the type of its output when
        it moves a transposition before it. The Cast is done once, when the file is loaded.
        """
        from onnx import TensorProto

        half = steps.to(torch.float16)
        if torch.equal(half.to(torch.float32), steps):
            return self.node("Cast", [self.tensor(name, half.numpy())], to=TensorProto.FLOAT)
        self.notes["steps of 32 bits, as some are too small or too large for 16"] = None
        return self.tensor(name, steps.numpy())

    def times(self, value: str, factor: int) -> str:
        """Append a product, unless the factor is 1."""
        if factor == 1:
            return value
        return self.node("Mul", [value, self.constant(np.array(factor, np.float32))])

    def reshape(self, value: str, shape: Sequence[int]) -> str:
        """Append a Reshape."""
        return self.node("Reshape", [value, self.constant(np.array(shape, np.int64))])

    def cast(self, value: str, dtype: torch.dtype) -> str:
        """Append a Cast, where `value` is in single precision and `dtype` is another."""
        from onnx import TensorProto

        if dtype == torch.float32:
            return value
        return self.node("Cast", [value], to=TensorProto.DataType.Value(FLOATS[dtype]))

    def permuted(self, value: str, order: Tensor, axis: int = 0) -> str:
        """Append a Gather of `order` along an axis, unless that leaves everything in place."""
        from onnx import TensorProto

        indices = order.cpu().numpy()
        if np.array_equal(indices, np.arange(len(indices))):
            return value
        bits = 8 if len(indices) <= 2**8 else 16 if len(indices) <= 2**16 else 32
        self.notes[f"an order of {bits} bits per row"] = None
        stored = self.tensor("order", indices.astype(f"uint{bits}"))
        wide = self.node("Cast", [stored], to=TensorProto.INT64)
        return self.node("Gather", [value, wide], axis=axis)


def packed_integers(values: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """Integers in two's complement, 8 / `bits` in a byte, the first in its lowest bits."""
    per_byte = 8 // bits
    codes = values.reshape(-1).astype(np.uint8) & (2**bits - 1)
    codes = np.pad(codes, (0, -len(codes) % per_byte)).reshape(-1, per_byte)
    shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(bits)
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(codes << shifts, axis=1)
    return packed
