"""One short name for exactly these tensors, so that a profile is never used with others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor

from .data import Data

__all__ = ["fingerprint"]


def fingerprint(tensors: Mapping[str, Tensor] | Data) -> str:
    """SHA-256 over names, types, shapes and bytes, in hexadecimal.

    Independent of the order of the tensors, of their strides and of the device they are on; for data, of
    its name.
    """
    if isinstance(tensors, Data):
        labels = {} if tensors.labels is None else {"labels": tensors.labels}
        return fingerprint({"inputs": tensors.inputs, **labels})
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        head = json.dumps([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)])
        digest.update(head.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
