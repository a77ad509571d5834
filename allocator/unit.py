"""What an option is chosen for: a layer, an output channel, a tile of channels, or a strip of inputs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from ..errors import InputError

__all__ = ["Unit", "parse_unit"]

UNIT_FORM = re.compile(r"(?P<kind>layer|channel|(?:tile|inputs)(?=:))(?::(?P<size>\d{1,7}))?")
GRAMMAR = (
    "write layer, channel, tile:16 (16 output channels share an option) or inputs:64 (64 input weights of a "
    "linear layer share an option, over all its output channels)"
)


@dataclass(frozen=True)
class Unit:
    """What shares one option.

    Parameters
    ----------
    kind : "layer", "channel", "tile" or "inputs"
    size : int
        Consecutive output channels of a tile, or consecutive input weights of a strip; 1 otherwise.

    Notes
    -----
    Text form: ``layer``, ``channel``, ``tile:16``, ``inputs:64``.
    """

    kind: Literal["layer", "channel", "tile", "inputs"]
    size: int = 1

    def __str__(self) -> str:
        return f"{self.kind}:{self.size}" if self.kind in ("tile", "inputs") else self.kind

    @property
    def tile(self) -> int:
        """Consecutive strips of a layer that share one stored option code: the channels of a tile, else 1."""
        return self.size if self.kind == "tile" else 1

    @property
    def cut(self) -> str | None:
        """How layers are cut for this unit, see `LayerCut.of`: None is by output channel."""
        return str(self) if self.kind == "inputs" else None


def parse_unit(text: str) -> Unit:
    """Read a unit of choice: ``layer``, ``channel``, ``tile:16``, ``inputs:64``.

    Raises
    ------
    InputError
        Not such a text, or a size below 2; the message teaches the grammar.
    """
    match = UNIT_FORM.fullmatch(text.strip())
    if match is None or (match["kind"] in ("layer", "channel")) != (match["size"] is None):
        raise InputError(f"'{text.strip()[:80]}' is not a unit of choice; {GRAMMAR}")
    size = int(match["size"] or 1)
    if match["size"] is not None and size < 2:
        raise InputError(f"the unit '{text.strip()}' has size {size}; a size is at least 2; {GRAMMAR}")
    return Unit(match["kind"], size)  # type: ignore[arg-type]
