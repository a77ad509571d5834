"""Tensors that are read when they are asked for: a network that is larger than the memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

__all__ = ["HALF_TYPES", "STORED_TYPES", "StreamedTensors", "outlines", "overlaid", "picked", "widened"]

STORED_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What tensors of a network may be, each with its name in safetensors files."""

HALF_TYPES = frozenset({torch.float16, torch.bfloat16})


class _Cache:
    """The tensors read last, up to a number of bytes."""

    def __init__(self, memory_bytes: int) -> None:
        self.memory_bytes = memory_bytes
        self._held: OrderedDict[str, Tensor] = OrderedDict()
        self.held_bytes = 0

    def get(self, name: str, read: Callable[[str], Tensor]) -> Tensor:
        found = self._held.get(name)
        if found is not None:
            self._held.move_to_end(name)
            return found
        # Room is made before reading: the old tensor and the new one need not be there together.
        tensor = read(name)
        if tensor.nbytes <= self.memory_bytes:
            while self.held_bytes + tensor.nbytes > self.memory_bytes:
                self.held_bytes -= self._held.popitem(last=False)[1].nbytes
            self._held[name] = tensor
            self.held_bytes += tensor.nbytes
        return tensor


class StreamedTensors(Mapping[str, Tensor]):
    """A mapping that makes a tensor when it is asked for, and keeps the last ones within a bound.

    Names, shapes and types are known without reading anything.

    Parameters
    ----------
    outlines : mapping of str to Tensor
        Tensors of the right shape and type, such as those of the device ``meta``.
    read : callable
        From a name to the tensor, on `device`.
    device : torch.device
    memory_bytes : int
        What the tensors that are kept may weigh together; those in use are not counted.

    Attributes
    ----------
    outlines : mapping of str to Tensor
    device : torch.device
    """

    def __init__(
        self,
        outlines: Mapping[str, Tensor],
        read: Callable[[str], Tensor],
        device: torch.device,
        memory_bytes: int = 0,
    ) -> None:
        self.outlines = outlines
        self.device = device
        self._read = read
        self._cache = _Cache(memory_bytes)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.outlines:
            raise KeyError(name)
        # What is kept may be used under autograd later, for which tensors of the inference mode are no use.
        with torch.inference_mode(False), torch.no_grad():
            return self._cache.get(name, self._read)

    def __iter__(self) -> Iterator[str]:
        return iter(self.outlines)

    def __len__(self) -> int:
        return len(self.outlines)

    def __contains__(self, name: object) -> bool:
        return name in self.outlines

    @property
    def memory_bytes(self) -> int:
        """What the tensors that are kept may weigh together."""
        return self._cache.memory_bytes

    @property
    def held_bytes(self) -> int:
        """Bytes of the tensors that are kept."""
        return self._cache.held_bytes

    def picked(self, names: Iterable[str]) -> StreamedTensors:
        """Some of the tensors, with the same bound on all that are kept."""
        some = StreamedTensors({name: self.outlines[name] for name in names}, self._read, self.device)
        some._cache = self._cache
        return some

    def to(self, device: torch.device) -> StreamedTensors:
        """The same tensors on another device; what is kept is kept there."""
        return StreamedTensors(
            self.outlines, lambda name: self._read(name).to(device), device, self.memory_bytes
        )

    def widened(self) -> StreamedTensors:
        """The same tensors, each `widened`; what is kept is kept so."""
        wide = {name: widened(outline) for name, outline in self.outlines.items()}
        return StreamedTensors(wide, lambda name: widened(self._read(name)), self.device, self.memory_bytes)


def widened(tensor: Tensor) -> Tensor:
    """A tensor in float32 where it is in half precision, else as it is."""
    return tensor.float() if tensor.dtype in HALF_TYPES else tensor


def outlines(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Tensors whose shape and type may be looked at, and nothing else: none is read for it."""
    return tensors.outlines if isinstance(tensors, StreamedTensors) else tensors


def picked(tensors: Mapping[str, Tensor], names: Iterable[str]) -> Mapping[str, Tensor]:
    """Some of the tensors, none of which is read for it."""
    if isinstance(tensors, StreamedTensors):
        return tensors.picked(names)
    return {name: tensors[name] for name in names}


def overlaid(tensors: Mapping[str, Tensor], replaced: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """All tensors, those of `replaced` in place of those of the same name; streamed where either is."""
    if not isinstance(tensors, StreamedTensors) and not isinstance(replaced, StreamedTensors):
        return {**tensors, **replaced}
    device = tensors.device if isinstance(tensors, StreamedTensors) else torch.device("cpu")

    def read(name: str) -> Tensor:
        return replaced[name] if name in replaced else tensors[name]

    return StreamedTensors({**outlines(tensors), **outlines(replaced)}, read, device)
