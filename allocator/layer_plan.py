"""The plan of one layer: one option for the whole weight, or one for every output channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from ..errors import InputError
from .ranges import channel_options, channel_ranges

__all__ = ["Bits", "Document", "LayerPlan", "Size", "Text"]

Text = Annotated[str, StringConstraints(min_length=1, max_length=500)]
Ranges = Annotated[str, StringConstraints(min_length=1, max_length=10_000_000)]
Bits = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(gt=0)]
# Beyond any layer in use; a forged plan shall not make lists of channels that fill the memory.
Axis = Annotated[int, Field(gt=0, le=2**24)]


class Document(BaseModel):
    """A part of a stored document: unknown fields, NaN and infinities are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LayerPlan(Document):
    """How one layer's weight is stored: one `option`, or `channels` with an option for each.

    Parameters
    ----------
    name : str
        Name of the layer in the network.
    shape : tuple of int
        Shape of the weight, output channels first.
    option : str, optional
        The option of the whole layer, such as ``w4``.
    channels : dict of str to str, optional
        Option -> output channels, such as ``{"w3": "0-4,9", "w5": "5-8"}``; every channel exactly once.
    size_bits : int
        Bits of the stored weight, overheads included.
    predicted_loss : float
        Loss that the scores predict for this layer alone.
    mean_bits : float
        ``size_bits`` over the number of weights.
    """

    name: Text
    shape: tuple[Axis, ...] = Field(min_length=1, max_length=8)
    option: Text | None = None
    channels: dict[Text, Ranges] | None = None
    size_bits: Bits
    predicted_loss: float
    mean_bits: float = Field(ge=0)

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        if (self.option is None) == (self.channels is None):
            raise ValueError(f"layer '{self.name}' needs either an option or channels, and not both")
        if self.channels is not None:
            try:
                channel_options(self.channels, self.shape[0])
            except ValueError as error:
                raise ValueError(f"layer '{self.name}': {error}") from error
        return self

    @classmethod
    def from_channels(
        cls,
        name: str,
        shape: Sequence[int],
        options: Sequence[str],
        *,
        size_bits: int,
        predicted_loss: float,
        mean_bits: float,
    ) -> LayerPlan:
        """Build from the option of every output channel; where all agree, `option` says so.

        Raises
        ------
        InputError
            The number of options is not the number of output channels.
        """
        if len(options) != shape[0]:
            raise InputError(
                f"layer '{name}' has {shape[0]} output channels and {len(options)} options are given; "
                "give one for each channel"
            )
        ranges = channel_ranges(options)
        return cls(
            name=name,
            shape=tuple(shape),
            option=options[0] if len(ranges) == 1 else None,
            channels=ranges if len(ranges) > 1 else None,
            size_bits=size_bits,
            predicted_loss=predicted_loss,
            mean_bits=mean_bits,
        )

    def channel_options(self) -> tuple[str, ...]:
        """Option of every output channel, in order."""
        if self.option is not None:
            return (self.option,) * self.shape[0]
        return channel_options(self.channels or {}, self.shape[0])

    def option_shares(self) -> dict[str, float]:
        """Share of the output channels that has each option; the shares add up to 1."""
        options = self.channel_options()
        return {option: options.count(option) / len(options) for option in dict.fromkeys(options)}
