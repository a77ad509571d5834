"""A safetensors file written tensor by tensor, so that no more than one has to be in memory."""

from __future__ import annotations

import json
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import torch
from torch import Tensor

from ..network import STORED_TYPES

__all__ = ["TensorWriter", "tensor_checksum"]

_PIECE = 2**24


class TensorWriter:
    """Collects tensors in temporary files, one for each size of number, and joins them at the end.

    Wider numbers come first, so that each begins at a multiple of its size, as readers that map files need.

    Parameters
    ----------
    folder : Path
        Where the temporary files are.

    Attributes
    ----------
    checksums : dict of str to int
        Of all that was added, see `tensor_checksum`.
    """

    def __init__(self, folder: Path) -> None:
        self.checksums: dict[str, int] = {}
        self._folder = folder
        self._open = ExitStack()
        self._files: dict[int, IO[bytes]] = {}
        self._entries: dict[int, dict[str, tuple[str, list[int], int, int]]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def add(self, name: str, tensor: Tensor) -> None:
        """Write a tensor of one of `STORED_TYPES`; the caller may forget it."""
        size = tensor.element_size()
        if size not in self._files:
            opened = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - closed with the writer
            self._files[size] = self._open.enter_context(opened)
            self._entries[size] = {}
        file = self._files[size]
        begin = file.tell()
        stored = tensor.detach().cpu().contiguous()
        for piece in _pieces(stored):
            file.write(piece)
        self.checksums[name] = tensor_checksum(stored)
        self._entries[size][name] = (STORED_TYPES[tensor.dtype], list(tensor.shape), begin, file.tell())

    def write(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the file with all that was added, in this order within each size."""
        header: dict[str, object] = {"__metadata__": dict(metadata)}
        base = 0
        for size in sorted(self._files, reverse=True):
            for name, (kind, shape, begin, end) in self._entries[size].items():
                header[name] = {"dtype": kind, "shape": shape, "data_offsets": [base + begin, base + end]}
            base += self._files[size].tell()
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for size in sorted(self._files, reverse=True):
                self._files[size].seek(0)
                shutil.copyfileobj(self._files[size], file, _PIECE)


def tensor_checksum(tensor: Tensor) -> int:
    """CRC-32, as zip files have it (ISO 3309), of type and shape as in ``F16[64, 1]``, and then the bytes."""
    found = zlib.crc32(f"{STORED_TYPES.get(tensor.dtype)}{list(tensor.shape)}".encode())
    for piece in _pieces(tensor):
        found = zlib.crc32(piece, found)
    return found


def _pieces(tensor: Tensor) -> Iterator[memoryview]:
    """The bytes of a tensor that lies in one piece in memory."""
    flat = tensor.reshape(-1).view(torch.uint8)
    for start in range(0, len(flat), _PIECE):
        yield flat[start : start + _PIECE].numpy().data
