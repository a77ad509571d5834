"""How a value of the network may be stored, and option texts that name weights and activations together."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import InputError
from .option import MAX_BITS, Option, parse_options

__all__ = [
    "ActivationOption",
    "OptionSet",
    "activation_part",
    "parse_activation",
    "parse_option_set",
    "split_option",
    "weight_part",
]

MIN_BITS = 2


@dataclass(frozen=True, order=True)
class ActivationOption:
    """One way to store a value: codes of `bits` bits, with a step and a zero point.

    Parameters
    ----------
    bits : int
        Width of a code, 2 to 8; codes are unsigned.
    dynamic : bool
        Whether every token (vector along the last axis) finds its range while the network runs; else one
        range for the tensor is fixed beforehand.

    Notes
    -----
    Text form: ``a8``, and ``a8d`` for ranges of the tokens' own.

    Raises
    ------
    InputError
        Bits outside their range.
    """

    bits: int
    dynamic: bool = False

    def __post_init__(self) -> None:
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise InputError(
                f"activation option has {self.bits} bits; codes have {MIN_BITS} to {MAX_BITS} bits"
            )

    def __str__(self) -> str:
        return f"a{self.bits}{'d' if self.dynamic else ''}"

    @property
    def levels(self) -> int:
        """The greatest code, ``2^bits - 1``."""
        return (1 << self.bits) - 1


@dataclass(frozen=True)
class OptionSet:
    """What a plan may choose from: every option of the weights goes with every one of the activations.

    Attributes
    ----------
    weights : tuple of Option
        In the order of their stored bits.
    activations : tuple of ActivationOption
        In the order of their bits; empty where activations stay float.
    """

    weights: tuple[Option, ...]
    activations: tuple[ActivationOption, ...]


_ACTIVATION = re.compile(r"a(?P<bits>\d{1,2})(?P<dynamic>d)?")
_RANGE = re.compile(r"a(?P<bits>\d{1,2})(?:\.\.a?(?P<to>\d{1,2}))?(?P<dynamic>d)?")
_GRAMMAR = "write a8 (8 bits), a4..8 (a range) or a8d (a range of every token's own)"


def parse_activation(text: str) -> ActivationOption:
    """Read the text form of one activation option, ``a8`` or ``a8d``.

    Raises
    ------
    InputError
        Not such a text, or bits out of range.
    """
    match = _ACTIVATION.fullmatch(text.strip())
    if match is None:
        raise InputError(f"'{text[:80]}' is not an activation option; {_GRAMMAR}")
    return ActivationOption(int(match["bits"]), match["dynamic"] is not None)


def split_option(text: str) -> tuple[str, str]:
    """The weights' and the activations' part of one option or range: ``w2..8a4..8`` -> ``w2..8``, ``a4..8``.

    Either may be empty.
    """
    weights, sign, activations = text.strip().partition("a")
    return weights, sign + activations


def parse_option_set(text: str) -> OptionSet:
    """Read a list of options whose activations may be stored in low bits too: ``w2..8a4..8``, ``w4a8,w8a8``.

    The set has every option of the weights that is named with every one of the activations, so that
    ``w4a8,w8a4`` means ``w4a4,w4a8,w8a4,w8a8``: weights belong to layers and activations to values, which
    several layers may read.

    Raises
    ------
    InputError
        An unreadable part, an empty range or list, or some options with activations and others without.
    """
    weights: list[str] = []
    activations: set[ActivationOption] = set()
    without: list[str] = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        weight, activation = split_option(part)
        if not weight:
            raise InputError(f"'{part[:80]}' names no weights; write for example w4{part[:80]}")
        weights.append(weight)
        activations.update(_activation_range(activation) if activation else ())
        without += [] if activation else [part]
    if activations and without:
        raise InputError(
            f"'{text[:80]}' stores activations in low bits for some options and not for {without[0]}; every "
            f"option of the weights goes with every one of the activations, so name them for all, such as "
            f"{without[0]}{min(activations)}, or for none"
        )
    return OptionSet(parse_options(",".join(weights)), tuple(sorted(activations)))


def weight_part(text: str) -> str:
    """What a list of options says of the weights: ``w4..8a8,a4`` -> ``w4..8``."""
    return ",".join(filter(None, (split_option(part)[0] for part in text.split(","))))


def activation_part(text: str) -> str:
    """What a list of options says of the activations, each written out: ``w4a6..8,w8`` -> ``a6,a7,a8``.

    Raises
    ------
    InputError
        An unreadable part.
    """
    named = filter(None, (split_option(part)[1] for part in text.split(",")))
    return ",".join(map(str, sorted({option for part in named for option in _activation_range(part)})))


def _activation_range(text: str) -> list[ActivationOption]:
    match = _RANGE.fullmatch(text)
    if match is None:
        raise InputError(f"'{text[:80]}' is not an activation option; {_GRAMMAR}")
    bits = range(int(match["bits"]), int(match["to"] or match["bits"]) + 1)
    if not bits:
        raise InputError(f"the range '{text}' is empty; write the smaller number first")
    return [ActivationOption(each, match["dynamic"] is not None) for each in bits]
