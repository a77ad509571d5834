"""How a weight may be stored: the option, its text form and its exact size."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from ..errors import InputError

__all__ = ["STEP_BITS", "Option", "StepUnit", "option_names", "parse_option", "parse_options"]

STEP_BITS = 16
MIN_BITS, MAX_BITS, MAX_POINTS, MAX_GROUP = 1, 8, 8, 999_999


class StepUnit(enum.StrEnum):
    """What shares one step: the whole tensor, an output channel, or a group of a channel's weights."""

    TENSOR = "tensor"
    CHANNEL = "channel"
    GROUP = "group"


@dataclass(frozen=True, order=True)
class Option:
    """One way to store a weight: `points` low-bit tensors of `bits` bits, summed with their steps.

    Parameters
    ----------
    bits : int
        Width of one integer code, 1 to 8. One bit says -1 or 1, more are in two's complement.
    points : int
        Number of low-bit tensors whose sum stands for the weight, 1 to 8.
    unit : StepUnit
        What shares one step.
    group : int
        Consecutive input weights per step when `unit` is "group", 1 to 999,999, else 0.

    Notes
    -----
    Text form: ``w4``, ``w2x2`` (two 2-bit points), ``w1x3`` (three binary points), ``w4t`` (one step for
    the tensor), ``w4g64`` (one step per 64 input weights), ``w2x2g64``.

    Raises
    ------
    InputError
        A field outside its range.
    """

    bits: int
    points: int = 1
    unit: StepUnit = StepUnit.CHANNEL
    group: int = 0

    def __post_init__(self) -> None:
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise InputError(f"option has {self.bits} bits; codes have {MIN_BITS} to {MAX_BITS} bits")
        if not 1 <= self.points <= MAX_POINTS:
            raise InputError(
                f"option has {self.points} points; a weight is a sum of 1 to {MAX_POINTS} points"
            )
        if self.unit is StepUnit.GROUP and not 1 <= self.group <= MAX_GROUP:
            raise InputError(
                f"option has groups of {self.group} weights; a group has 1 to {MAX_GROUP:,} weights"
            )
        if self.unit is not StepUnit.GROUP and self.group != 0:
            raise InputError(
                f"option has unit {self.unit} and group {self.group}; a group size goes with unit group"
            )

    def __str__(self) -> str:
        points = f"x{self.points}" if self.points > 1 else ""
        unit = {StepUnit.TENSOR: "t", StepUnit.CHANNEL: "", StepUnit.GROUP: f"g{self.group}"}[self.unit]
        return f"w{self.bits}{points}{unit}"

    def step_count(self, channels: int, fan_in: int) -> int:
        """Steps that one point needs for a weight of `channels` x `fan_in`."""
        if self.unit is StepUnit.TENSOR:
            return 1
        return channels * (-(-fan_in // self.group) if self.group else 1)

    def size_bits(self, channels: int, fan_in: int) -> int:
        """Bits of the codes and the 16-bit steps: ``points * (bits * channels * fan_in + 16 * steps)``."""
        return self.points * (self.bits * channels * fan_in + STEP_BITS * self.step_count(channels, fan_in))


OPTION_FORM = re.compile(r"w(?P<bits>\d{1,2})(?:x(?P<points>\d{1,2}))?(?:(?P<tensor>t)|g(?P<group>\d{1,6}))?")
RANGE_FORM = re.compile(
    r"w(?P<bits>\d{1,2})(?:\.\.w?(?P<bits_to>\d{1,2}))?"
    r"(?:x(?P<points>\d{1,2})(?:\.\.(?P<points_to>\d{1,2}))?)?"
    r"(?P<unit>t|g\d{1,6})?"
)


def parse_option(text: str) -> Option:
    """Read the text form of one option, such as ``w4``, ``w2x2`` or ``w4g64``.

    Raises
    ------
    InputError
        Not such a text, or a value out of range.
    """
    match = OPTION_FORM.fullmatch(text.strip())
    if match is None:
        raise InputError(
            f"'{text}' is not an option; write w4 (4 bits), w2x2 (two 2-bit points), w4t (one step for the "
            "tensor) or w4g64 (one step per 64 input weights)"
        )
    unit = StepUnit.CHANNEL
    if match["tensor"]:
        unit = StepUnit.TENSOR
    elif match["group"]:
        unit = StepUnit.GROUP
    return Option(int(match["bits"]), int(match["points"] or 1), unit, int(match["group"] or 0))


def parse_options(text: str) -> tuple[Option, ...]:
    """Read a comma-separated list in which bits and points may be ranges: ``w2..8,w4x1..2``.

    Returns the options in the order of their stored bits, each once.

    Raises
    ------
    InputError
        An unreadable part, an empty range or an empty list.
    """
    options: set[Option] = set()
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        match = RANGE_FORM.fullmatch(part)
        if match is None:
            parse_option(part)  # says what an option looks like
            raise InputError(f"'{part}' is not a range of options; write w2..8 or w4x1..4")
        bits = range(int(match["bits"]), int(match["bits_to"] or match["bits"]) + 1)
        points = range(int(match["points"] or 1), int(match["points_to"] or match["points"] or 1) + 1)
        if not bits or not points:
            raise InputError(f"the range '{part}' is empty; write the smaller number first")
        unit = match["unit"] or ""
        options.update(parse_option(f"w{b}x{n}{unit}") for b in bits for n in points)
    if not options:
        raise InputError(f"'{text}' names no option; write for example w2..8")
    return tuple(sorted(options, key=lambda option: (option.bits * option.points, option)))


def option_names(text: str) -> tuple[str, ...]:
    """The options of a list as `parse_options` reads it, each in its own text form.

    Raises
    ------
    InputError
        See `parse_options`.
    """
    return tuple(str(option) for option in parse_options(text))
