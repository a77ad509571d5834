"""Values in low bits in ONNX: pairs of QuantizeLinear and DequantizeLinear where a value is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, library

from ..network import Network, with_explicit_activations

__all__ = ["translations", "with_value_operators"]

UINT8_LEVELS = 255


def with_value_operators(network: Network, tensors: Mapping[str, Tensor]) -> Network:
    """The program with one operator for each low-bit value of one range, for which `translations` has ONNX.

    Ranges of the tokens' own are plain arithmetic.
    """
    return with_explicit_activations(network, tensors, static=_operator()) if tensors else network


def translations() -> dict[Any, Callable[..., Any]]:
    """What PyTorch's exporter makes of the operator: codes of 8 bits, clipped where they have fewer."""
    return {_operator(): _in_onnx}


@cache
def _operator() -> Callable[[Tensor, float, int, int], Tensor]:
    """The operator, which lives in PyTorch's registry from the first export on."""

    @library.custom_op("apportion::low_bit_value", mutates_args=())
    def low_bit_value(x: Tensor, step: float, zero_point: int, levels: int) -> Tensor:
        entry = torch.tensor(step, dtype=torch.float32)
        codes = ((x * entry.reciprocal()).round() + zero_point).clamp(0, levels)
        return (codes - zero_point) * step

    @low_bit_value.register_fake
    def _(x: Tensor, step: float, zero_point: int, levels: int) -> Tensor:
        return torch.empty_like(x)

    operator: Callable[[Tensor, float, int, int], Tensor] = torch.ops.apportion.low_bit_value.default
    return operator


def _in_onnx(x: Any, step: float, zero_point: int, levels: int) -> Any:
    from onnx import TensorProto, helper
    from onnxscript import opset21 as op

    def constant(kind: int, value: float) -> Any:
        return op.Constant(value=helper.make_tensor("value", kind, [], [value]))

    scale, zero = constant(TensorProto.FLOAT, step), constant(TensorProto.UINT8, zero_point)
    # Steps are numbers of single precision: half cannot hold them, and QuantizeLinear takes no double.
    single = x.dtype == TensorProto.FLOAT
    codes = op.QuantizeLinear(x if single else op.Cast(x, to=TensorProto.FLOAT), scale, zero)
    if levels < UINT8_LEVELS:
        # Eight bits end at 0 by themselves.
        codes = op.Min(codes, constant(TensorProto.UINT8, levels))
    values = op.DequantizeLinear(codes, scale, zero)
    return values if single else op.CastLike(values, x)
