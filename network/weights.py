"""Weights from a safetensors file into a module, all of them or an error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import InputError

__all__ = ["check_values", "load_weights"]

_SHOWN = 3


def load_weights(module: nn.Module, path: Path) -> None:
    """Copy a safetensors file into a module whose tensors have the same names and shapes.

    A tied tensor may be stored once, under any of its names; counters of batches may be missing.

    Raises
    ------
    InputError
        The file cannot be read; the module has tensors without values; tensors are missing, unexpected or of
        another shape (the first few are named).
    """
    try:
        with safe_open(path, framework="pt") as file:
            given = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise InputError(f"cannot read weights {path}: {error}; give a .safetensors file") from error
    expected = module.state_dict(keep_vars=True)
    check_values(expected)
    present = {id(expected[name]) for name in given if name in expected}
    missing = [
        name
        for name, tensor in expected.items()
        if name not in given and id(tensor) not in present and not name.endswith("num_batches_tracked")
    ]
    unexpected = [name for name in given if name not in expected]
    shapes = [
        f"{name} is {tuple(tensor.shape)} where the module has {tuple(expected[name].shape)}"
        for name, tensor in given.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    problems = [
        f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise InputError(
            f"weights {path} do not fit the module: tensors {'; '.join(problems)}; "
            "the names must be those of its state_dict"
        )
    with torch.no_grad():
        for name, tensor in given.items():
            expected[name].copy_(tensor)


def check_values(tensors: Mapping[str, object]) -> None:
    """Refuse tensors that have no values yet.

    Raises
    ------
    InputError
        Names the tensor.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            continue
        if is_lazy(tensor):
            raise InputError(
                f"tensor '{name}' is of a lazy layer and has no shape yet; call the module once on a sample, "
                "where it is built"
            )
        if tensor.is_meta:
            raise InputError(
                f"tensor '{name}' is on the device meta and has no values; build the module on the CPU"
            )
