"""Partial sums of a profiling run, kept on disk so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..documents import replace_file
from .sweep import Cotangents

__all__ = ["SegmentStore", "standard_error"]

# At most this much work is lost when a run is cut off.
SAVE_EVERY_S = 5.0


def standard_error(total: Tensor, square: Tensor, samples: int) -> Tensor:
    """Standard error of the mean ``total / samples``, from the sum and the sum of squares over samples."""
    variance = (square / samples - (total / samples).square()).clamp_min(0)
    return (variance / max(1, samples - 1)).sqrt()


class SegmentStore:
    """Sums over the samples seen so far, for one segment, and the cotangents of what enters it.

    Invariant: `samples` is the number of leading samples whose contributions are in all sums, and whose
    cotangents are in `entering`; what lies on disk satisfies it at every moment.
    """

    def __init__(self, folder: Path | None, number: int, key: str) -> None:
        self._folder, self._number, self._key = folder, number, key
        self._parts: list[Tensor] = []
        self._sum: Tensor | None = None
        self._square: Tensor | None = None
        self._factors: Tensor | None = None
        self._chunks = 0
        self._written = 0
        self._saved_at = time.monotonic()
        self.entering: list[Cotangents] = []
        """Cotangents of what enters the segment, for each chunk of samples; see `load_entering`."""

    @classmethod
    def open(cls, folder: Path | None, number: int, key: str) -> SegmentStore:
        """What an earlier run left for this segment under the same key, or an empty store."""
        store = cls(folder, number, key)
        tensors = store._read("sums")
        if tensors:
            store._parts = [tensors["projections"]]
            store._sum, store._square = tensors["sum"], tensors["square"]
            store._factors = tensors.get("factors")
            store._chunks = store._written = int(tensors["chunks"])
        return store

    @property
    def samples(self) -> int:
        """Number of leading samples whose contributions are in the sums."""
        return sum(len(part) for part in self._parts)

    @property
    def chunks(self) -> int:
        """Number of chunks that these samples came in."""
        return self._chunks

    @property
    def projections(self) -> Tensor:
        """Shape (samples, draws, layers, options), float32."""
        return torch.cat(self._parts)

    @property
    def factors(self) -> Tensor | None:
        """Folded projections of the strips, shape (rows, strips, options), where they are kept."""
        return self._factors

    def add(
        self,
        projections: Tensor,
        total: Tensor,
        square: Tensor,
        factors: Tensor | None,
        entering: Cotangents,
    ) -> None:
        """Add a chunk of samples.

        Parameters
        ----------
        projections : Tensor, shape (samples, draws, layers, options), float32
        total, square : Tensor, shape (channels, options), float64
            Sum and sum of squares over the chunk's samples of the channels' losses.
        factors : Tensor, shape (rows, strips, options), float32, or None
            The chunk's part of the folded projections.
        entering : Cotangents
            Of what enters the segment.
        """
        self._parts.append(projections)
        self._sum = total if self._sum is None else self._sum + total
        self._square = square if self._square is None else self._square + square
        if factors is not None:
            self._factors = factors if self._factors is None else self._factors.add_(factors)
        self.entering.append(entering)
        self._chunks += 1
        if time.monotonic() - self._saved_at > SAVE_EVERY_S:
            self._save()

    def emptied(self) -> SegmentStore:
        """A store of the same segment that begins anew."""
        return SegmentStore(self._folder, self._number, self._key)

    def close(self) -> None:
        """Write what has not been written."""
        self._save()

    def load_entering(self) -> bool:
        """Read `entering` of an earlier run; False where it is not whole."""
        found: list[Cotangents] = []
        for chunk in range(self._chunks):
            tensors = self._read(f"entering-{chunk:06d}")
            if not tensors:
                return False
            draws: Cotangents = [{} for _ in range(int(tensors.pop("draws")))]
            for text, tensor in tensors.items():
                draw, _, name = text.partition(" ")
                draws[int(draw)][name] = tensor
            found.append(draws)
        self.entering = found
        return True

    def drop_entering(self) -> None:
        """Forget `entering`, which is of no more use once the segment before is done."""
        self.entering = []
        for chunk in range(self._chunks if self._folder is not None else 0):
            self._path(f"entering-{chunk:06d}").unlink(missing_ok=True)

    def channel_scores(self, samples: int) -> tuple[Tensor, Tensor]:
        """Mean loss over `samples` and its standard error, each (channels, options), float64."""
        assert self._sum is not None
        assert self._square is not None
        return self._sum / samples, standard_error(self._sum, self._square, samples)

    def _path(self, what: str) -> Path:
        assert self._folder is not None
        return self._folder / f"segment-{self._number:04d}-{what}.safetensors"

    def _read(self, what: str) -> dict[str, Tensor]:
        """Tensors kept under the key; none where there are none, or not by us: measured again."""
        if self._folder is None:
            return {}
        try:
            with safe_open(self._path(what), framework="pt") as file:
                if (file.metadata() or {}).get("key") == self._key:
                    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            pass
        return {}

    def _write(self, what: str, tensors: dict[str, Tensor]) -> None:
        with replace_file(self._path(what)) as temporary:
            save_file(tensors, temporary, metadata={"key": self._key})

    def _save(self) -> None:
        self._saved_at = time.monotonic()
        if self._folder is None or self._sum is None or self._square is None:
            return
        # What the sums rely on first.
        missing = self._chunks - self._written
        for chunk, draws in enumerate(self.entering[len(self.entering) - missing :], self._written):
            tensors = {
                f"{draw} {name}": tensor.contiguous().cpu()
                for draw, cotangents in enumerate(draws)
                for name, tensor in cotangents.items()
            }
            self._write(f"entering-{chunk:06d}", tensors | {"draws": torch.tensor(len(draws))})
        self._written = self._chunks
        tensors = {"projections": self.projections, "sum": self._sum, "square": self._square}
        if self._factors is not None:
            tensors["factors"] = self._factors
        self._write("sums", tensors | {"chunks": torch.tensor(self._chunks)})
