"""Which tensor of a checkpoint is which of the program."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import InputError
from .architectures import Library
from .checkpoint import Checkpoint, Stored

__all__ = ["find_stored"]

# What Mixtral calls the three matrices of an expert.
_EXPERT = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
_SHOWN = 3


def find_stored(
    library: Library, module: Any, tensors: dict[str, Tensor], checkpoint: Checkpoint
) -> dict[str, Stored]:
    """Where the checkpoint has the tensors of a program.

    Parameters
    ----------
    module : nn.Module
        The model as it was captured, experts one by one.
    tensors : dict
        Those of the program: every parameter must be there, a buffer may be.

    Raises
    ------
    InputError
        Parameters are missing or of another shape; the first few are named.
    """
    names: dict[int, list[str]] = {}
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for name, parameter in parameters.items():
        names.setdefault(id(parameter), []).append(name)
    given = _given_names(library, module, checkpoint)
    stored: dict[str, Stored] = {}
    missing, other = [], []
    for name, tensor in tensors.items():
        aliases = names[id(parameters[name])] if name in parameters else [name]
        places = [given[alias] for alias in aliases if alias in given]
        if not places:
            missing += [name] if name in parameters else []
        elif checkpoint.shape(places[0]) != tuple(tensor.shape):
            other.append(f"{name} is {checkpoint.shape(places[0])} where the model has {tuple(tensor.shape)}")
        elif tensor.is_floating_point():
            stored[name] = places[0]
    problems = [
        f"{len(found)} {what} ({', '.join(found[:_SHOWN])}{', ...' if len(found) > _SHOWN else ''})"
        for what, found in (("missing", missing), ("of another shape", other))
        if found
    ]
    if problems:
        raise InputError(
            f"the weights in {checkpoint.folder} do not fit its configuration: tensors {'; '.join(problems)}"
        )
    return stored


def _given_names(library: Library, module: Any, checkpoint: Checkpoint) -> dict[str, Stored]:
    """The checkpoint's tensors by the names that the module has for them, experts one by one."""
    expected = dict.fromkeys(
        [name for name, _ in module.named_parameters(remove_duplicate=False)]
        + [name for name, _ in module.named_buffers(remove_duplicate=False)],
        True,
    )
    renamings = [each for each in library.conversions_of(module) if isinstance(each, library.renaming)]
    given: dict[str, Stored] = {}
    for key, shape in checkpoint.shapes.items():
        name, _ = library.rename(key, renamings, [], module.base_model_prefix, expected)
        given[name] = Stored(key)
        head, _, last = name.rpartition(".")
        if head.endswith(".experts") and last in ("gate_up_proj", "down_proj") and len(shape) == 3:
            for expert in range(shape[0]):
                if last == "down_proj":
                    given[f"{head}.{expert}.down_proj.weight"] = Stored(key, (expert,))
                else:
                    inner = shape[1] // 2
                    given[f"{head}.{expert}.gate_proj.weight"] = Stored(key, (expert, slice(0, inner)))
                    given[f"{head}.{expert}.up_proj.weight"] = Stored(key, (expert, slice(inner, None)))
        parts = name.split(".")
        if len(parts) > 3 and parts[-4] == "experts" and parts[-2] in _EXPERT:
            given[".".join([*parts[:-2], _EXPERT[parts[-2]], "weight"])] = Stored(key)
    return given
