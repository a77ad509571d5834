"""Integer codes as a dense stream of bits, and back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError

__all__ = ["pack_codes", "packed_bytes", "unpack_codes"]

# A multiple of 8 codes, so that every chunk ends on a whole byte.
CHUNK = 2**20


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of `count` codes of `bits` bits: ``ceil(count * bits / 8)``."""
    return -(-count * bits // 8)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Codes in ``[-2^(bits-1), 2^(bits-1) - 1]`` as bytes, most significant bit first.

    Parameters
    ----------
    codes : Tensor, any shape, int8
    bits : int, 2 to 8

    Returns
    -------
    Tensor, shape (ceil(codes * bits / 8),), uint8

    Raises
    ------
    InputError
        A code outside the range.
    """
    flat = codes.reshape(-1).cpu().numpy()
    half = 2 ** (bits - 1)
    if flat.size and (flat.min() < -half or flat.max() >= half):
        raise InputError(
            f"codes reach from {flat.min()} to {flat.max()}; {bits} bits hold {-half} to {half - 1}"
        )
    shifts = np.arange(bits - 1, -1, -1, dtype=np.uint8)
    packed = []
    for start in range(0, flat.size, CHUNK):
        unsigned = (flat[start : start + CHUNK].astype(np.int16) + half).astype(np.uint8)
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
    codes = np.empty(count, np.int8)
    for start in range(0, count, CHUNK):
        stop = min(start + CHUNK, count)
        part = stream[start * bits // 8 : packed_bytes(stop, bits)]
        digits = np.unpackbits(part, count=(stop - start) * bits).reshape(-1, bits)
        codes[start:stop] = digits @ weights - 2 ** (bits - 1)
    return torch.from_numpy(codes)
