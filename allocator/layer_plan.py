"""The plan of one layer: one option for the whole weight, or one for every strip of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from ..errors import InputError
from .cut import LayerCut
from .ranges import strip_options, strip_ranges
from .unit import Unit

__all__ = ["Bits", "Document", "LayerPlan", "Size", "Text"]

Text = Annotated[str, StringConstraints(min_length=1, max_length=500)]
Ranges = Annotated[str, StringConstraints(min_length=1, max_length=10_000_000)]
Bits = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(gt=0)]
# Beyond any layer in use; a forged plan shall not make lists of strips that fill the memory.
Axis = Annotated[int, Field(gt=0, le=2**24)]


class Document(BaseModel):
    """A part of a stored document: unknown fields, NaN and infinities are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LayerPlan(Document):
    """How one layer's weight is stored: one `option`, or `strips` with an option for each.

    Parameters
    ----------
    name : str
        Name of the layer in the network.
    shape : tuple of int
        Shape of the weight, output channels first.
    option : str, optional
        The option of the whole layer, such as ``w4``.
    strips : dict of str to str, optional
        Option -> strips, such as ``{"w3": "0-4,9", "w5": "5-8"}``; every strip exactly once. Strips are
        output channels, or what `cut` says.
    cut : str, optional
        ``inputs:64`` where the strips are runs of 64 input weights over all output channels.
    size_bits : int
        Bits of the stored weight, overheads included.
    predicted_loss : float, optional
        Loss that the scores predict for this layer alone; absent where they say nothing of the plan.
    mean_bits : float
        ``size_bits`` over the number of weights.
    confidence : float, optional
        Probability that the chosen options are the best, mean over the layer's weights, as far as the samples
        tell that the losses were measured on.
    regret : float, optional
        Loss that the best options are expected to save over the chosen ones, for the same reason.
    """

    name: Text
    shape: tuple[Axis, ...] = Field(min_length=1, max_length=8)
    option: Text | None = None
    strips: dict[Text, Ranges] | None = None
    cut: Text | None = None
    size_bits: Bits
    predicted_loss: float | None = None
    mean_bits: float = Field(ge=0)
    confidence: float | None = Field(default=None, ge=0, le=1)
    regret: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        if (self.option is None) == (self.strips is None):
            raise ValueError(f"layer '{self.name}' needs either an option or strips, and not both")
        try:
            self.layer_cut()
            if self.strips is not None:
                self.strip_options()
        except ValueError as error:
            raise ValueError(f"layer '{self.name}': {error}") from error
        return self

    @classmethod
    def from_strips(
        cls,
        name: str,
        shape: Sequence[int],
        options: Sequence[str],
        *,
        cut: str | None = None,
        size_bits: int,
        predicted_loss: float | None = None,
        mean_bits: float,
    ) -> LayerPlan:
        """Build from the option of every strip; where all agree, `option` says so.

        Raises
        ------
        InputError
            The number of options is not the number of strips.
        """
        strips = LayerCut.of(shape, cut).strips
        if len(options) != strips:
            what = "output channels" if cut is None else "strips"
            raise InputError(
                f"layer '{name}' has {strips} {what} and {len(options)} options are given; give one for each"
            )
        ranges = strip_ranges(options)
        return cls(
            name=name,
            shape=tuple(shape),
            option=options[0] if len(ranges) == 1 else None,
            strips=ranges if len(ranges) > 1 else None,
            cut=cut,
            size_bits=size_bits,
            predicted_loss=predicted_loss,
            mean_bits=mean_bits,
        )

    def layer_cut(self) -> LayerCut:
        """What the strips are."""
        return LayerCut.of(self.shape, self.cut)

    def strip_options(self) -> tuple[str, ...]:
        """Option of every strip, in order."""
        strips = self.layer_cut().strips
        if self.option is not None:
            return (self.option,) * strips
        return strip_options(self.strips or {}, strips, "strip" if self.cut else "channel")

    def check_unit(self, unit: Unit) -> None:
        """Refuse strips that a plan of this unit of choice cannot have.

        Raises
        ------
        ValueError
            Several options in a layer that is one unit, or in one tile; another cut than the unit's.
        """
        if self.cut is not None and (unit.kind in ("channel", "tile") or unit.cut not in (None, self.cut)):
            raise ValueError(
                f"layer '{self.name}' has cut {self.cut} in a plan per {unit}; set unit to {self.cut}"
            )
        if self.strips is None:
            return
        if unit.kind == "layer" or (unit.kind == "inputs" and self.cut is None):
            raise ValueError(
                f"layer '{self.name}' has several options in a plan per {unit}, where it is one unit; give "
                f"it one option, or set unit to {self.cut or 'channel'}"
            )
        options = self.strip_options()
        for start in range(0, len(options), unit.tile) if unit.tile > 1 else ():
            found = sorted(set(options[start : start + unit.tile]))
            if len(found) > 1:
                last = min(start + unit.tile, len(options)) - 1
                raise ValueError(
                    f"layer '{self.name}': channels {start}-{last} are one tile and have the options "
                    f"{', '.join(found)}; give them one, or set unit to channel"
                )

    def option_shares(self) -> dict[str, float]:
        """Share of the strips that has each option; the shares add up to 1."""
        options = self.strip_options()
        return {option: options.count(option) / len(options) for option in dict.fromkeys(options)}
