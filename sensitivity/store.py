"""Partial sums of a profiling run, kept on disk so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..documents import replace_file

__all__ = ["SpanStore", "standard_error"]

# At most this much work is lost when a run is cut off.
SAVE_EVERY_S = 5.0


def standard_error(total: Tensor, square: Tensor, samples: int) -> Tensor:
    """Standard error of the mean ``total / samples``, from the sum and the sum of squares over samples."""
    variance = (square / samples - (total / samples).square()).clamp_min(0)
    return (variance / max(1, samples - 1)).sqrt()


class SpanStore:
    """Sums over the samples seen so far, for one span of layers.

    Invariant: `samples` is the number of leading samples whose contributions are in all sums; what lies on
    disk satisfies it at every moment.
    """

    def __init__(self, path: Path | None, key: str, tensors: dict[str, Tensor]) -> None:
        self._path = path
        self._key = key
        self._parts = [tensors["projections"]] if tensors else []
        self._sum = tensors.get("sum")
        self._square = tensors.get("square")
        self._factors = tensors.get("factors")
        self._saved_at = time.monotonic()

    @classmethod
    def open(cls, folder: Path | None, number: int, key: str) -> SpanStore:
        """What an earlier run left for this span under the same key, or an empty store."""
        if folder is None:
            return cls(None, key, {})
        path = folder / f"span-{number:04d}.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("key") == key:
                    return cls(path, key, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (OSError, SafetensorError):
            pass  # nothing kept, or not by us: measured again
        return cls(path, key, {})

    @property
    def samples(self) -> int:
        """Number of leading samples whose contributions are in the sums."""
        return sum(len(part) for part in self._parts)

    @property
    def projections(self) -> Tensor:
        """Shape (samples, draws, layers, options), float32."""
        return torch.cat(self._parts)

    @property
    def factors(self) -> Tensor | None:
        """Folded projections of the strips, shape (rows, strips, options), where they are kept."""
        return self._factors

    def add(self, projections: Tensor, total: Tensor, square: Tensor, factors: Tensor | None = None) -> None:
        """Add a chunk of samples.

        Parameters
        ----------
        projections : Tensor, shape (samples, draws, layers, options), float32
        total, square : Tensor, shape (channels, options), float64
            Sum and sum of squares over the chunk's samples of the channels' losses.
        factors : Tensor, shape (rows, strips, options), float32, optional
            The chunk's part of the folded projections.
        """
        self._parts.append(projections)
        self._sum = total if self._sum is None else self._sum + total
        self._square = square if self._square is None else self._square + square
        if factors is not None:
            self._factors = factors if self._factors is None else self._factors.add_(factors)
        if time.monotonic() - self._saved_at > SAVE_EVERY_S:
            self._save()

    def close(self) -> None:
        """Write what has not been written."""
        self._save()

    def channel_scores(self, samples: int) -> tuple[Tensor, Tensor]:
        """Mean loss over `samples` and its standard error, each (channels, options), float64."""
        assert self._sum is not None
        assert self._square is not None
        return self._sum / samples, standard_error(self._sum, self._square, samples)

    def _save(self) -> None:
        self._saved_at = time.monotonic()
        if self._path is None or self._sum is None or self._square is None:
            return
        tensors = {"projections": self.projections, "sum": self._sum, "square": self._square}
        if self._factors is not None:
            tensors["factors"] = self._factors
        with replace_file(self._path) as temporary:
            save_file(tensors, temporary, metadata={"key": self._key})
