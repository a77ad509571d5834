"""Integer codes as a dense stream of bits, and back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .grid import codes_of

__all__ = ["pack_codes", "packed_bytes", "unpack_codes"]

# A multiple of 8 codes, so that every chunk ends on a whole byte.
CHUNK = 2**20


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of `count` codes of `bits` bits: ``ceil(count * bits / 8)``."""
    return -(-count * bits // 8)


def pack_codes(values: Tensor, bits: int) -> Tensor:
    """Codes of `bits` bits, see `codes_of`, as bytes: their places in order, most significant bit first.

    Parameters
    ----------
    values : Tensor, any shape, int8
    bits : int, 1 to 8

    Returns
    -------
    Tensor, shape (ceil(values * bits / 8),), uint8

    Raises
    ------
    InputError
        No such code.
    """
    flat = values.reshape(-1).cpu().numpy()
    codes = codes_of(bits)
    if flat.size and (flat.min() < codes[0] or flat.max() > codes[-1]):
        raise InputError(
            f"codes reach from {flat.min()} to {flat.max()}; {bits} bits hold {codes[0]} to {codes[-1]}"
        )
    if bits == 1 and not flat.all():
        raise InputError("one of the codes is 0; one bit holds -1 and 1")
    shifts = np.arange(bits - 1, -1, -1, dtype=np.uint8)
    packed = []
    for start in range(0, flat.size, CHUNK):
        unsigned = ((flat[start : start + CHUNK].astype(np.int16) - codes[0]) // codes.step).astype(np.uint8)
        packed.append(np.packbits((unsigned[:, None] >> shifts) & 1))
    return torch.from_numpy(np.concatenate(packed) if packed else np.zeros(0, np.uint8))


def unpack_codes(packed: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of `pack_codes`: `count` codes, shape (count,), int8.

    Raises
    ------
    InputError
        The stream has not exactly the bytes of `count` codes.
    """
    stream = packed.cpu().numpy()
    if stream.size != packed_bytes(count, bits):
        raise InputError(
            f"packed codes have {stream.size} bytes; {count} codes of {bits} bits take "
            f"{packed_bytes(count, bits)}: the file is truncated or not of this plan"
        )
    weights = (1 << np.arange(bits - 1, -1, -1)).astype(np.int16)
    codes = codes_of(bits)
    values = np.empty(count, np.int8)
    for start in range(0, count, CHUNK):
        stop = min(start + CHUNK, count)
        part = stream[start * bits // 8 : packed_bytes(stop, bits)]
        digits = np.unpackbits(part, count=(stop - start) * bits).reshape(-1, bits)
        values[start:stop] = digits @ weights * codes.step + codes[0]
    return torch.from_numpy(values)
