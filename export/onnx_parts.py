"""Rows of a layer by the integers that hold them: options of odd widths widened, equal ones put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..quantizer import QuantizedRows
from ..reconstruct import StoredPart

__all__ = ["merged", "stored_width", "widened"]


def stored_width(bits: int) -> int:
    """The least of 2, 4 and 8 bits that holds codes of `bits` bits."""
    return next(width for width in (2, 4, 8) if width >= bits)


def widened(part: StoredPart) -> StoredPart:
    """The same codes and steps under the option whose width is the least of 2, 4 and 8 bits."""
    option = replace(part.rows.option, bits=stored_width(part.rows.option.bits))
    return StoredPart(part.index, QuantizedRows(option, part.rows.codes, part.rows.steps))


def merged(parts: Sequence[StoredPart]) -> list[StoredPart]:
    """Rows of equal options together, on the CPU; their order is that of the indices."""
    together = []
    for option in dict.fromkeys(part.rows.option for part in parts):
        equal = [part for part in parts if part.rows.option == option]
        codes = torch.cat([part.rows.codes.cpu() for part in equal], 1)
        steps = torch.cat([part.rows.steps.cpu() for part in equal], 1)
        index = torch.cat([part.index.cpu() for part in equal])
        together.append(StoredPart(index, QuantizedRows(option, codes, steps)))
    return together
