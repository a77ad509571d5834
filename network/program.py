"""A captured program in a small file: its graph without its tensors, in JSON, with no code in it.

`torch.export.save` would do for the graph, but ties the file to one version of torch and takes a loader
that evaluates parts of it; a list of operators by name, with plain arguments, does neither.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, fx

from ..documents import read_document, replace_file
from ..errors import InputError
from .network import InputShape, Network
from .operators import check_arguments, operator_name, operator_named
from .tensors import StreamedTensors, picked

__all__ = ["load_program", "save_program", "stored_program"]

_CONSTANTS = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class StoredReference(_Stored):
    """An argument that JSON has no word for.

    A value computed before, a tensor of the network, one of torch's constants, the network's device, or a
    number that is not finite.
    """

    kind: Literal["value", "tensor", "dtype", "layout", "memory_format", "device", "number"]
    name: str


_Atom: TypeAlias = bool | int | float | str | StoredReference | None
# No operator takes lists of lists.
StoredArgument: TypeAlias = _Atom | list[_Atom]


class StoredNode(_Stored):
    """One call: `name = operator(*args, **kwargs)`; `elements` of the result per sample where it has any."""

    name: str = Field(pattern=r"^[A-Za-z_]\w*$")
    operator: str
    args: list[StoredArgument] = []
    kwargs: dict[str, StoredArgument] = {}
    elements: int | None = Field(default=None, ge=0)


class StoredInput(_Stored):
    """A placeholder: the shape of one sample, and its type."""

    name: str = Field(pattern=r"^[A-Za-z_]\w*$")
    shape: list[int]
    dtype: str


class StoredProgram(_Stored):
    """A network without its tensors."""

    format: Literal["apportion.program"] = "apportion.program"
    version: Literal[1] = 1
    inputs: list[StoredInput]
    nodes: list[StoredNode]
    output: str


def stored_program(network: Network) -> StoredProgram:
    """The graph of a network in a form that JSON can hold.

    Raises
    ------
    InputError
        The program calls an operator that is not PyTorch's own, or has an argument that JSON cannot hold.
    """
    return StoredProgram(
        inputs=[
            StoredInput(name=name, shape=list(given.shape), dtype=str(given.dtype).removeprefix("torch."))
            for name, given in zip(network.schedule.inputs, network.inputs, strict=True)
        ],
        nodes=[
            StoredNode(
                name=node.name,
                operator=operator_name(node.target),
                args=[_store(argument) for argument in node.args],
                kwargs={key: _store(argument) for key, argument in node.kwargs.items()},
                elements=node.meta.get("elements"),
            )
            for node in network.graph.nodes
            if node.op == "call_function"
        ],
        output=network.schedule.output,
    )


def save_program(network: Network, path: Path) -> None:
    """Write the graph of a network, without its tensors.

    Raises
    ------
    InputError
        The file cannot be written, or the program cannot be stored, see `stored_program`.
    """
    content = stored_program(network).model_dump_json(exclude_unset=True)
    with replace_file(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def load_program(path: Path, tensors: Mapping[str, Tensor]) -> Network:
    """Read a program written by `save_program` and give it its tensors, by qualified name.

    Raises
    ------
    InputError
        The file is missing, damaged or of another format, names an operator that torch does not have or
        that a program may not call, or reads a tensor that is not given.
    """
    stored = read_document(path, StoredProgram, "program")
    try:
        return _build(stored, tensors)
    except InputError as error:
        raise InputError(f"program {path}: {error}") from error
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        # What a hand-made file can do to the search for layers.
        raise InputError(f"program {path} is damaged: {type(error).__name__}: {error}") from error


def _build(stored: StoredProgram, tensors: Mapping[str, Tensor]) -> Network:
    graph = fx.Graph()
    known: dict[str, fx.Node] = {}
    for given in stored.inputs:
        known[given.name] = graph.placeholder(given.name)
    device = torch.device("cpu")
    if isinstance(tensors, StreamedTensors):
        device = tensors.device
    elif tensors:
        device = next(iter(tensors.values())).device
    reads: dict[str, fx.Node] = {}

    def load(argument: StoredArgument) -> Any:
        if isinstance(argument, list):
            return [load(part) for part in argument]
        if not isinstance(argument, StoredReference):
            return argument
        if argument.kind == "value":
            if argument.name not in known:
                raise InputError(f"it reads the value '{argument.name}' before it is computed")
            return known[argument.name]
        if argument.kind == "tensor":
            if argument.name not in tensors:
                raise InputError(f"it reads the tensor '{argument.name}', which is not among those given")
            if argument.name not in reads:
                reads[argument.name] = graph.create_node("get_attr", argument.name)
            return reads[argument.name]
        if argument.kind == "device":
            return device
        if argument.kind == "number":
            return float(argument.name)
        return _constant(argument.kind, argument.name)

    for node in stored.nodes:
        if node.name in known:
            raise InputError(f"it computes the value '{node.name}' twice")
        args = tuple(load(argument) for argument in node.args)
        kwargs = {key: load(argument) for key, argument in node.kwargs.items()}
        operator = operator_named(node.operator)
        check_arguments(operator, len(args), kwargs)
        created = graph.create_node("call_function", operator, args, kwargs, node.name)
        if node.elements is not None:
            created.meta["elements"] = node.elements
        known[node.name] = created
    if stored.output not in known:
        raise InputError(f"its output '{stored.output}' is never computed")
    graph.output(known[stored.output])
    inputs = tuple(InputShape(tuple(given.shape), _constant("dtype", given.dtype)) for given in stored.inputs)
    return Network(graph, picked(tensors, [name for name in tensors if name in reads]), inputs)


def _store(argument: Any) -> StoredArgument:
    if isinstance(argument, (list, tuple)):
        return [_store_atom(part) for part in argument]
    return _store_atom(argument)


def _store_atom(argument: Any) -> _Atom:
    if argument is None or isinstance(argument, (bool, int, str)):
        return argument
    if isinstance(argument, float):
        return argument if math.isfinite(argument) else StoredReference(kind="number", name=str(argument))
    if isinstance(argument, fx.Node):
        if argument.op == "get_attr":
            return StoredReference(kind="tensor", name=str(argument.target))
        return StoredReference(kind="value", name=argument.name)
    if isinstance(argument, torch.device):
        return StoredReference(kind="device", name="network")
    for kind, type_ in _CONSTANTS.items():
        if isinstance(argument, type_):
            name = str(argument).removeprefix("torch.")
            return StoredReference.model_validate({"kind": kind, "name": name})
    raise InputError(
        f"the program has an argument of type {type(argument).__name__}, which cannot be stored; give it as "
        "a tensor, such as a buffer"
    )


def _constant(kind: str, name: str) -> Any:
    constant = getattr(torch, name, None)
    if not isinstance(constant, _CONSTANTS[kind]):
        raise InputError(f"it names the {kind} '{name}', which torch {torch.__version__} does not have")
    return constant
