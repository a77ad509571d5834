"""How a layer's weight is cut into strips, each of which may have an option of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol, Self, TypeVar

from ..errors import InputError
from .unit import parse_unit

__all__ = ["LayerCut", "fitting_cut"]


class Matrix(Protocol):
    """What arrays and tensors have in common that a cut needs."""

    def reshape(self, *shape: int) -> Self: ...

    def swapaxes(self, axis0: int, axis1: int, /) -> Self: ...


AnyMatrix = TypeVar("AnyMatrix", bound=Matrix)


@dataclass(frozen=True)
class LayerCut:
    """A weight (channels, fan_in) as strips: its output channels, or runs of `inputs` input weights.

    A strip of inputs spans all output channels and has steps of its own for each, so the weight is stored
    as a matrix of rows, ``rows_per_strip`` for every strip, strip after strip:

        output channels   strips = channels          rows (channels, fan_in)
        runs of inputs    strips = fan_in / inputs   rows (strips * channels, inputs)

    Parameters
    ----------
    channels : int
        Output channels.
    fan_in : int
        Weights per output channel.
    inputs : int
        Consecutive input weights of a strip, a proper divisor of `fan_in`; 0 where strips are channels.
    """

    channels: int
    fan_in: int
    inputs: int = 0

    @classmethod
    def of(cls, shape: Sequence[int], cut: str | None = None) -> LayerCut:
        """The cut that a document names for a weight of this shape, output channels first.

        Parameters
        ----------
        cut : str, optional
            ``inputs:64``; None for output channels.

        Raises
        ------
        InputError
            Not such a text, or the weight is no matrix of several such runs.
        """
        channels, fan_in = shape[0], prod(shape[1:])
        if cut is None:
            return cls(channels, fan_in)
        inputs = _inputs(cut)
        if not _divides(shape, inputs):
            raise InputError(
                f"the cut {cut} does not fit shape {list(shape)}: only linear layers are cut, and their "
                f"inputs must be 2 or more times {inputs}"
            )
        return cls(channels, fan_in, inputs)

    @property
    def strips(self) -> int:
        """Parts that may have different options."""
        return self.fan_in // self.inputs if self.inputs else self.channels

    @property
    def rows_per_strip(self) -> int:
        """Rows, each with steps of its own, of one strip."""
        return self.channels if self.inputs else 1

    @property
    def row_weights(self) -> int:
        """Weights of one row."""
        return self.inputs or self.fan_in

    @property
    def rows(self) -> int:
        """Rows of all strips."""
        return self.strips * self.rows_per_strip

    def strip_rows(self, strips: Sequence[int]) -> list[int]:
        """Indices of the rows of some strips, strip after strip."""
        count = self.rows_per_strip
        return [row for strip in strips for row in range(strip * count, (strip + 1) * count)]

    def to_rows(self, matrix: AnyMatrix) -> AnyMatrix:
        """The rows of all strips, shape (rows, row_weights), from the weight as (channels, fan_in)."""
        if not self.inputs:
            return matrix
        parts = matrix.reshape(self.channels, self.strips, self.inputs)
        return parts.swapaxes(0, 1).reshape(self.rows, self.inputs)

    def from_rows(self, rows: AnyMatrix) -> AnyMatrix:
        """The weight as (channels, fan_in); the inverse of `to_rows`."""
        if not self.inputs:
            return rows
        parts = rows.reshape(self.strips, self.channels, self.inputs)
        return parts.swapaxes(0, 1).reshape(self.channels, self.fan_in)


def fitting_cut(shape: Sequence[int], cut: str | None) -> str | None:
    """The cut where it fits a weight of this shape, else None: such a layer is not cut.

    Raises
    ------
    InputError
        Not the text of a cut.
    """
    return cut if cut is not None and _divides(shape, _inputs(cut)) else None


def _inputs(cut: str) -> int:
    unit = parse_unit(cut)
    if unit.kind != "inputs":
        raise InputError(f"'{cut}' is not a cut; a layer is cut into runs of inputs, such as inputs:64")
    return unit.size


def _divides(shape: Sequence[int], inputs: int) -> bool:
    # Weights of convolutions have more than two axes.
    return len(shape) == 2 and shape[1] > inputs and shape[1] % inputs == 0
