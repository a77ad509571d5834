"""Which operators a program may call, and their names in files."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Collection
from typing import Any

import torch

from ..errors import InputError

__all__ = ["check_arguments", "is_arithmetic", "is_known_target", "operator_name", "operator_named"]

# Arithmetic on sizes, which is traced as calls of Python's own functions.
# fmt: off
_OPERATORS = (
    "abs", "add", "and_", "eq", "floordiv", "ge", "getitem", "gt", "le", "lshift", "lt", "mod", "mul", "ne",
    "neg", "not_", "or_", "pos", "pow", "rshift", "sub", "truediv", "xor",
)
# fmt: on
_ARITHMETIC: dict[str, Callable[..., Any]] = {
    **{f"operator.{name}": getattr(operator, name) for name in _OPERATORS},
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc", "sqrt", "log2")},
    **{
        f"torch.{name}": getattr(torch, name)
        for name in ("sym_float", "sym_int", "sym_ite", "sym_max", "sym_min", "sym_not", "sym_sum")
    },
}
_NAMES = {function: name for name, function in _ARITHMETIC.items()}
_ATEN = re.compile(r"aten\.[A-Za-z_]\w*\.\w+")
# They read or write files and streams.
_REFUSED = re.compile(r"aten\.(from_file|save|warn|_print)\.")
# Regions that only switch gradients or autocast, inlined on capture; and transformers' experts.
_INLINED = frozenset(
    {
        "higher_order.wrap_with_set_grad_enabled",
        "higher_order.wrap_with_autocast",
        "transformers.grouped_mm_fallback.default",
    }
)


def is_known_target(name: str) -> bool:
    """Whether a captured program may call `name`: ATen operators and arithmetic on sizes."""
    return (
        name in _ARITHMETIC or name in _INLINED or (bool(_ATEN.fullmatch(name)) and not _REFUSED.match(name))
    )


def is_arithmetic(target: object) -> bool:
    """Whether `target` is one of Python's functions that programs compute sizes with."""
    return target in _NAMES


def operator_name(target: Callable[..., Any]) -> str:
    """The name of an operator in files, such as `aten.conv2d.default` or `operator.mul`.

    Raises
    ------
    InputError
        Not an operator that a stored program may hold.
    """
    if isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable:
        raise InputError(f"the program calls {target}, which writes in place; write its forward without it")
    name = str(target) if isinstance(target, torch._ops.OpOverload) else _NAMES.get(target, "")
    if not is_known_target(name) or name in _INLINED:
        raise InputError(
            f"the program calls {target}, which is not one of PyTorch's own operators; a program with custom "
            "operators cannot be stored"
        )
    return name


def operator_named(name: str) -> Callable[..., Any]:
    """The operator of a name; inverse of `operator_name`.

    Raises
    ------
    InputError
        Unknown to this version of torch, in-place, or not allowed in a program.
    """
    if name in _ARITHMETIC:
        return _ARITHMETIC[name]
    if not is_known_target(name) or name in _INLINED:
        raise InputError(f"'{name}' is not an operator that a program may call")
    _, packet, overload = name.split(".")
    target = getattr(getattr(torch.ops.aten, packet, None), overload, None)
    if not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable:
        raise InputError(f"torch {torch.__version__} has no functional operator '{name}'")
    return target


def check_arguments(target: Callable[..., Any], positional: int, keywords: Collection[str]) -> None:
    """Check that a call gives an operator the arguments it needs and no others, whatever their types.

    Raises
    ------
    InputError
        An argument is missing, unknown, given twice or too many.
    """
    if not isinstance(target, torch._ops.OpOverload):
        return
    arguments = target._schema.arguments
    names = [argument.name for argument in arguments]
    given = [*names[:positional], *keywords]
    needed = {argument.name for argument in arguments if not argument.has_default_value()}
    if positional > len(names) or len(given) != len(set(given)) or not needed <= set(given) <= set(names):
        raise InputError(
            f"its call of {target} has {positional} arguments and {sorted(keywords)}; it takes {names}"
        )
