"""The model a user names on the command line, as a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from ..errors import InputError
from .archive import load_archive
from .capture import capture, capture_program
from .checkpoint import open_checkpoint
from .huggingface import context_of, load_huggingface
from .network import Network
from .source import parse_source
from .weights import load_weights

__all__ = ["load_model", "text_form"]


_FOLDER = "hf:"


def load_model(
    spec: str,
    *,
    weights: Path | None = None,
    example: Tensor | None = None,
    context: int | None = None,
    memory_bytes: int | None = None,
) -> Network:
    """Load and capture a model.

    Parameters
    ----------
    spec : str
        ``hf:folder``, a local folder of the transformers library (see `load_huggingface`); a `.pt2` file
        written by `torch.export.save`; or `file.py:factory`, `module:factory` or
        `file.py:factory('argument', size=3)`: a function, or a class, that returns an `nn.Module`.
    weights : Path, optional
        A `.safetensors` file with exactly the parameters and buffers of the factory's module.
    example : Tensor, optional
        A few samples of the calibration data, `(samples, ...)`. Required for a factory; a `.pt2` file
        knows the shape of its input, and so does a folder. Floats are given in the type that the network
        takes: the one it was exported with, or else as they are, or as a factory's module has its parameters
        where it does not run on them so. `Data.taken_by` gives data that type.
    context : int, optional
        Tokens per sample of a language model from a folder, where there is no example.
    memory_bytes : int, optional
        Weights of a folder that are larger are not loaded, but read as they are asked for; default: no bound.

    Raises
    ------
    InputError
        The file or factory is missing or fails, the weights do not fit the module, or `capture` refuses.
    """
    if spec.startswith(_FOLDER):
        if weights is not None:
            raise InputError(f"{spec} holds its own weights; leave --weights out")
        folder = Path(spec.removeprefix(_FOLDER))
        return load_huggingface(folder, example=example, context=context, memory_bytes=memory_bytes)
    if spec.endswith(".pt2"):
        if weights is not None:
            raise InputError(
                f"{spec} holds its own weights; leave --weights out, or name the factory of the module"
            )
        program = load_archive(Path(spec))
        taken = _inputs_of(program)
        samples = _blank_samples(taken, spec) if example is None else _in_type(example, taken[0].dtype)
        return capture_program(program, samples)
    source = parse_source(spec, "a model: neither hf:folder, a .pt2 file nor a Python factory")
    if example is None:
        raise InputError(f"capturing {spec} takes a few inputs; give calibration data with --data")
    with source.call() as module:
        if not isinstance(module, nn.Module):
            raise InputError(f"{spec} returned {type(module).__name__}; it must return a torch.nn.Module")
        if weights is not None:
            load_weights(module, Path(weights))
        return _capture_taking(module, example)


def _capture_taking(module: nn.Module, example: Tensor) -> Network:
    """Capture a module on floats as they are, or else in the type of its parameters."""
    try:
        return capture(module, example)
    except InputError:
        # A module may take float32 and change types by itself; whether it does is seen by running it.
        own = _in_type(example, next((each.dtype for each in module.parameters()), example.dtype))
        if own.dtype == example.dtype:
            raise
    return capture(module, own)


def _in_type(example: Tensor, dtype: torch.dtype) -> Tensor:
    """Floats in another type of floats; others as they are."""
    return example.to(dtype) if example.is_floating_point() and dtype.is_floating_point else example


def text_form(spec: str, context: int | None = None) -> tuple[Path | None, int | None]:
    """The tokenizer that a model brings, and how many of its tokens make a sample.

    Parameters
    ----------
    spec : str
        As for `load_model`.
    context : int, optional
        Tokens that were asked for.

    Returns
    -------
    Path or None, int or None
        For ``hf:folder`` the folder, and the `context` or what the model takes, at most 512; for others None
        and the `context`.

    Raises
    ------
    InputError
        The folder is refused, or the model does not take such a context.
    """
    if not spec.startswith(_FOLDER):
        return None, context
    folder = Path(spec.removeprefix(_FOLDER))
    return folder, context_of(open_checkpoint(folder), context)


def _inputs_of(program: ExportedProgram) -> list[Tensor]:
    """The inputs that a program was exported with, without values."""
    kinds = {spec.arg.name: spec.kind for spec in program.graph_signature.input_specs}
    values: list[Any] = [
        node.meta["val"]
        for node in program.graph.find_nodes(op="placeholder")
        if kinds[node.name] == InputKind.USER_INPUT
    ]
    return [value for value in values if isinstance(value, Tensor)]


def _blank_samples(taken: list[Tensor], what: str) -> tuple[Tensor, ...]:
    """Zeros in the shapes the program was exported with, for a batch of two."""
    samples = []
    for value in taken:
        shape = tuple(value.shape[1:])
        if not all(isinstance(size, int) for size in shape):
            raise InputError(f"{what} takes inputs of several sizes; give calibration data with --data")
        samples.append(torch.zeros((2, *shape), dtype=value.dtype))
    return tuple(samples)
