"""A finished network on disk: packed weights and the program that reads them, and the way back."""

from __future__ import annotations

from pathlib import Path

from ..allocator import Plan, assignment_digest, read_plan
from ..errors import InputError
from ..network import Network, load_program, save_program, with_explicit_activations
from ..reconstruct import Finalized, value_tensors
from .packed import PackedNetwork, read_packed, write_packed

__all__ = ["PLAN", "PROGRAM", "WEIGHTS", "load", "read_run", "save_network"]

PLAN, WEIGHTS, PROGRAM = "plan.json", "weights.safetensors", "program.json"


def save_network(folder: str | Path, network: Network, plan: Plan, finalized: Finalized) -> None:
    """Write ``weights.safetensors`` (packed) and ``program.json`` (the graph without weights) to a folder.

    Raises
    ------
    InputError
        The folder cannot be written, or the program holds operators that are not PyTorch's own.
    """
    save_program(network, Path(folder) / PROGRAM)
    write_packed(Path(folder) / WEIGHTS, network, plan, finalized)


def read_run(folder: str | Path, *, memory_bytes: int | None = None) -> PackedNetwork:
    """The packed weights of a run folder, which are those of its ``plan.json`` where it has one.

    Parameters
    ----------
    memory_bytes : int, optional
        See `read_packed`.

    Raises
    ------
    InputError
        A file is missing or damaged, or the plan was solved again or edited since the weights were computed.
    """
    folder = Path(folder)
    packed = read_packed(folder / WEIGHTS, memory_bytes=memory_bytes)
    if (folder / PLAN).exists():
        plan = read_plan(folder / PLAN)
        if assignment_digest(plan.layers, plan.activations) != packed.made_for:
            raise InputError(
                f"{folder / WEIGHTS} was computed for another plan than {folder / PLAN}, which was solved "
                "again or edited since; compute the weights of this one: "
                f"allocate finalize --out {folder} --force"
            )
    return packed


def load(folder: str | Path, *, memory_bytes: int | None = None) -> Network:
    """The quantized network of a run folder, ready to be called; the user's own code is not needed.

    Weights are dequantized to floats: ``weight[c] = sum_i step[i, c] * code[i, c]``. Values that the plan
    stores in low bits are rounded to them as the network runs, by operations of its program.

    Parameters
    ----------
    memory_bytes : int, optional
        Where the weights as floats are larger, each is dequantized as it is asked for; default: all at once.

    Examples
    --------
    >>> network = apportion.load("run")  # doctest: +SKIP
    >>> logits = network(inputs)  # doctest: +SKIP

    Raises
    ------
    InputError
        A file is missing or damaged, or they do not belong together.
    """
    packed = read_run(folder, memory_bytes=memory_bytes)
    network = load_program(Path(folder) / PROGRAM, packed.tensors())
    return with_explicit_activations(network, value_tensors(packed.finalized.values))
