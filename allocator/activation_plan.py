"""The plan of activations: how every value that layers read is stored, and what is in memory together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Annotated, Self

from pydantic import Field, model_validator

from .layer_plan import Bits, Document, Size, Text

__all__ = [
    "FLOAT_BITS",
    "ActivationChoice",
    "ActivationPlan",
    "LiveStep",
    "activation_bits",
    "layer_activations",
    "layer_widths",
    "peak_bits",
    "peak_limits",
]

FLOAT_BITS = 32
"""Of a number that is not quantized."""


class ActivationChoice(Document):
    """One way to store a value.

    Parameters
    ----------
    bits : int
        Of one code.
    predicted_loss : float
        KL to the float network when only this value is stored so, as scored.
    step : float, optional
        Of the grid ``(code - zero_point) * step``; absent where every token finds its own while the network
        runs.
    zero_point : int, optional
        The code of 0; absent as `step` is.
    """

    bits: Annotated[int, Field(ge=1, le=16)]
    predicted_loss: float
    step: float | None = Field(default=None, gt=0)
    zero_point: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _check_grid(self) -> Self:
        if (self.step is None) != (self.zero_point is None):
            raise ValueError("a step and a zero point go together; give both or neither")
        if self.zero_point is not None and self.zero_point >= 2**self.bits:
            raise ValueError(
                f"the zero point is {self.zero_point}; with {self.bits} bits it is 0 to {2**self.bits - 1}"
            )
        return self


class ActivationPlan(Document):
    """How one value is stored; one quantizer serves all that read it.

    Parameters
    ----------
    name : str
        The value: a node of the program, or one of its inputs.
    option : str
        The chosen option, such as ``a8``; one of `choices`.
    elements : int
        Numbers for one sample.
    readers : dict of str to int
        Layers that multiply it, with the multiply-accumulates that this takes for one sample; empty where
        only products of values read it.
    choices : dict of str to ActivationChoice
        Option -> how the value is stored under it.
    """

    name: Text
    option: Text
    elements: Bits
    readers: dict[Text, Bits]
    choices: dict[Text, ActivationChoice] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_option(self) -> Self:
        if self.option not in self.choices:
            raise ValueError(
                f"value '{self.name}' has option {self.option}, which is not among its choices "
                f"({', '.join(self.choices)}); choose one of these"
            )
        return self

    @property
    def chosen(self) -> ActivationChoice:
        """What the option means."""
        return self.choices[self.option]

    def about(self) -> list[object]:
        """What a choice among the options is about: all but the choice itself."""
        losses = {option: choice.predicted_loss for option, choice in self.choices.items()}
        return [self.name, self.elements, self.readers, losses]


class LiveStep(Document):
    """What is in memory at one operation, for one sample.

    Parameters
    ----------
    operation : str
        The node of the program.
    floats : int
        Numbers of 32 bits.
    values : tuple of str
        Values that the plan stores in low bits.
    """

    operation: Text
    floats: Bits
    values: tuple[Text, ...] = ()


def activation_bits(activations: Sequence[ActivationPlan]) -> dict[str, int]:
    """Bits of every value's codes."""
    return {value.name: value.chosen.bits for value in activations}


def layer_activations(activations: Sequence[ActivationPlan]) -> dict[str, int]:
    """For every layer that multiplies values the sum over these of ``macs * bits``.

    Its bit operations are this times its own bits. Embeddings, which read ids, have no entry.
    """
    found: dict[str, int] = {}
    for value in activations:
        for layer, macs in value.readers.items():
            found[layer] = found.get(layer, 0) + macs * value.chosen.bits
    return found


def layer_widths(activations: Sequence[ActivationPlan]) -> dict[str, str]:
    """For every layer the option of what it reads; of several, that of most bits, and rather a8d than a8."""
    found: dict[str, str] = {}
    for value in sorted(activations, key=lambda value: (value.chosen.bits, value.option)):
        found |= dict.fromkeys(value.readers, value.option)
    return found


def peak_bits(live: Sequence[LiveStep], elements: Mapping[str, Size], bits: Mapping[str, int]) -> Fraction:
    """Most bits that are in memory at one operation, for one sample.

    Parameters
    ----------
    elements, bits : mapping of str to int
        Numbers of every value, and bits of each of them.
    """
    return Fraction(
        max(
            FLOAT_BITS * step.floats + sum(elements[name] * bits[name] for name in step.values)
            for step in live
        )
    )


def peak_limits(
    live: Sequence[LiveStep], elements: Mapping[str, int], most: Mapping[str, int], limit_bits: int
) -> list[tuple[LiveStep, int]]:
    """Steps at which a limit on the peak can bind, with the bits that it leaves to the values there.

    Parameters
    ----------
    most : mapping of str to int
        The most bits that each value can have.
    """
    found = []
    for step in live:
        left = limit_bits - FLOAT_BITS * step.floats
        if sum(elements[name] * most[name] for name in step.values) > left:
            found.append((step, left))
    return found
