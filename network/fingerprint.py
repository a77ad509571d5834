"""One short name for exactly this network or these tensors, so that a profile is never used with others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor

from .data import Data
from .network import Network
from .program import StoredArgument, StoredReference, stored_program

__all__ = ["fingerprint"]


def fingerprint(of: Mapping[str, Tensor] | Data | Network) -> str:
    """SHA-256 over names, types, shapes and bytes, in hexadecimal.

    Independent of the order of the tensors, of their strides and of the device they are on; for data, of
    its name; for a network, whose operators and their arguments count too, of how its values are called.
    """
    if isinstance(of, Data):
        labels = {} if of.labels is None else {"labels": of.labels}
        return fingerprint({"inputs": of.inputs, **labels})
    if isinstance(of, Network):
        both = f"{fingerprint(of.tensors)} {json.dumps(_calls(of), sort_keys=True)}"
        return hashlib.sha256(both.encode()).hexdigest()
    return _of_tensors(of)


def _calls(network: Network) -> list[list[object]]:
    """What the program computes: calls in their order, every value by its number, inputs first."""
    program = stored_program(network)
    names = [*(given.name for given in program.inputs), *(node.name for node in program.nodes)]
    number = {name: place for place, name in enumerate(names)}

    def plain(argument: StoredArgument) -> object:
        if isinstance(argument, list):
            return [plain(part) for part in argument]
        if not isinstance(argument, StoredReference):
            return argument
        return {argument.kind: number[argument.name] if argument.kind == "value" else argument.name}

    calls: list[list[object]] = [
        [
            node.operator,
            [plain(each) for each in node.args],
            {key: plain(each) for key, each in node.kwargs.items()},
        ]
        for node in program.nodes
    ]
    return [*calls, [number[program.output]]]


def _of_tensors(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        head = json.dumps([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)])
        digest.update(head.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
