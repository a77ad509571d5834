"""Values at a cut of the network for all samples, in memory up to a bound and on disk beyond it."""

from __future__ import annotations

import contextlib
import math
import mmap
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

__all__ = ["ACTIVATION_BATCH", "ActivationStore", "Activations", "empty_within"]

ACTIVATION_BATCH = 64
"""Samples that are computed at once."""


@dataclass(frozen=True, eq=False)
class Activations:
    """One value of the network for every sample.

    Attributes
    ----------
    values : Tensor, shape (samples, ...)
    folded : bool
        Whether the network has samples and the next axis in one, as `(samples * tokens, features)`.
    """

    values: Tensor
    folded: bool = False

    def __len__(self) -> int:
        return len(self.values)

    def take(self, samples: Tensor | slice) -> Tensor:
        """The value of some samples, as the network computes it."""
        taken = self.values[samples]
        return taken.flatten(0, 1) if self.folded else taken


class ActivationStore:
    """Room for activations.

    Parameters
    ----------
    memory_bytes : int
        What the activations that are alive may hold together; more go to temporary files, which the system
        maps into memory as they are read.
    """

    def __init__(self, memory_bytes: int) -> None:
        self._memory_bytes = memory_bytes
        self._held: dict[int, weakref.ref[Activations | Tensor]] = {}
        self._held_bytes = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files = 0
        self._pages: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    @property
    def held_bytes(self) -> int:
        """Bytes in memory of what was kept here and is still alive."""
        return self._held_bytes

    def keep(self, value: Tensor) -> Tensor:
        """The value itself while there is room, else a copy on disk; what is kept already comes back."""
        known = self._held.get(id(value))
        if known is not None and known() is value:
            return value
        # A view would keep all that it is a part of.
        value = value.clone() if value.untyped_storage().nbytes() > value.nbytes else value
        size = value.untyped_storage().nbytes()
        if self.held_bytes + size > self._memory_bytes and size:
            value, size = self._mapped(tuple(value.shape), value).copy_(value), 0
        self._note(value, size)
        return value

    def compute(self, samples: int, values: Callable[[slice], Tensor]) -> Activations:
        """Put `values(part)` of all samples, asked for batch by batch, below each other."""
        result: Tensor | None = None
        in_memory = folded = False
        for start in range(0, samples, ACTIVATION_BATCH):
            part = slice(start, min(start + ACTIVATION_BATCH, samples))
            value = values(part)
            count = part.stop - part.start
            if result is None:
                folded = len(value) != count
                own = (len(value) // count, *value.shape[1:]) if folded else value.shape[1:]
                result, in_memory = self._empty((samples, *own), value)
            result[part] = value.reshape(count, *result.shape[1:])
        if result is None:
            raise ValueError("there are no samples")
        found = Activations(result, folded)
        if in_memory:
            self._note(found, result.nbytes)
        return found

    def rest(self) -> None:
        """Take what is on disk out of this process's memory, where the system can, until it is read again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for pages in self._pages:
                pages.madvise(mmap.MADV_DONTNEED)

    def _note(self, kept: Activations | Tensor, size: int) -> None:
        """Count something for as long as it lives."""
        key = id(kept)

        def forget(_: weakref.ref[Activations | Tensor]) -> None:
            self._held.pop(key, None)
            self._held_bytes -= size

        self._held[key] = weakref.ref(kept, forget)
        self._held_bytes += size

    def _empty(self, shape: tuple[int, ...], like: Tensor) -> tuple[Tensor, bool]:
        count = math.prod(shape)
        if self.held_bytes + count * like.element_size() <= self._memory_bytes or count == 0:
            return torch.empty(shape, dtype=like.dtype, device=like.device), True
        return self._mapped(shape, like), False

    def _mapped(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """An empty tensor whose numbers are in a file."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._files += 1
        mapped, pages = _mapped(Path(self._folder.name) / str(self._files), shape, like.dtype)
        self._pages.add(pages)
        return mapped


def empty_within(memory_bytes: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An empty tensor on the CPU, in memory if it is no larger than the bound, else in a temporary file."""
    if math.prod(shape) * dtype.itemsize <= memory_bytes:
        return torch.empty(shape, dtype=dtype)
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    mapped, _ = _mapped(Path(folder.name) / "values", shape, dtype)
    weakref.finalize(mapped, folder.cleanup)
    return mapped


def _mapped(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, mmap.mmap]:
    """An empty tensor whose numbers are in a file, and its pages."""
    with path.open("w+b") as file:
        file.truncate(math.prod(shape) * dtype.itemsize)
        pages = mmap.mmap(file.fileno(), 0)
    # The mapping outlives the name; where a system refuses that, the folder goes at the end.
    with contextlib.suppress(PermissionError):
        path.unlink()
    return torch.frombuffer(pages, dtype=dtype).view(shape), pages
