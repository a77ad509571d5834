"""How much quality may be lost: ``0.1%``, ``0.01kl`` or ``1%ppl``, and the documents of measured drops."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Self

from pydantic import Field, model_validator

from ..errors import InputError
from .layer_plan import Bits, Document, Size, Text

__all__ = ["Drop", "DropKind", "Search", "SearchOutcome", "Tolerance", "Trial", "parse_tolerance"]

TOLERANCE_FORM = re.compile(r"(?P<number>[+-]?(?:\d{1,9}(?:\.\d{0,9})?|\.\d{1,9}))\s*(?P<unit>%ppl|%|kl)")
GRAMMAR = (
    "write 0.1% (points of accuracy lost, needs labels), 0.01kl (mean KL to the float network in nats) or "
    "1%ppl (rise of the perplexity, needs a label per token)"
)


class DropKind(enum.StrEnum):
    """Which quality is compared with the float network's."""

    ACCURACY = "accuracy"
    KL = "kl"
    PERPLEXITY = "perplexity"


@dataclass(frozen=True)
class Tolerance:
    """A limit on the drop of quality.

    Parameters
    ----------
    kind : DropKind
        What is limited.
    value : float
        Share of answers (0.001 for 0.1 points), nats, or relative rise (0.01 for 1%).
    text : str
        As written, which `str` gives back; tolerances that differ in it alone are equal.
    """

    kind: DropKind
    value: float
    text: str = field(compare=False)

    def __str__(self) -> str:
        return self.text

    def first_guess(self) -> float:
        """A loss (KL, nats) at which the drop may be near the limit: where a search should begin.

        KL is its own; the mean cross-entropy of a network that knows how sure it is rises by about its KL;
        and the share of answers that is lost is small beside the KL.
        """
        return 4 * self.value if self.kind is DropKind.ACCURACY else self.value


def parse_tolerance(text: str) -> Tolerance:
    """Read a tolerance: ``0.1%``, ``0.01kl``, ``1%ppl``.

    Raises
    ------
    InputError
        Not a tolerance, negative, 0 for KL, which no change keeps, or 100% and more of the answers; the
        message teaches the grammar.
    """
    stripped = text.strip()
    match = TOLERANCE_FORM.fullmatch(stripped)
    if match is None:
        raise InputError(f"'{stripped[:80]}' is not a drop of quality; {GRAMMAR}")
    number, unit = Decimal(match["number"]), match["unit"]
    written = f"{match['number']}{unit}"
    if number < 0:
        raise InputError(f"the drop '{written}' is below 0; {GRAMMAR}")
    if unit == "kl":
        if number == 0:
            raise InputError("the drop '0kl' allows no change at all; give one above 0, such as 0.001kl")
        return Tolerance(DropKind.KL, float(number), written)
    share = float(number / 100)
    if unit == "%ppl":
        return Tolerance(DropKind.PERPLEXITY, share, written)
    if share >= 1:
        raise InputError(f"the drop '{written}' allows every answer to be lost; give less than 100%")
    return Tolerance(DropKind.ACCURACY, share, written)


class Drop(Document):
    """How much worse than the float network, measured on the same samples.

    Parameters
    ----------
    kind : "accuracy", "kl" or "perplexity"
        What was compared.
    value : float
        Share of answers lost (0.001 for 0.1 points), KL in nats, or relative rise of the perplexity; below 0
        where the network became better.
    low, high : float
        Ends of the paired interval at `confidence`.
    confidence : float
        Share of repetitions in which the interval holds the true drop.
    """

    kind: DropKind
    value: float
    low: float
    high: float
    confidence: float = Field(default=0.95, gt=0, lt=1)

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"the interval {self.low} to {self.high} does not hold the drop {self.value}")
        return self

    def described(self) -> str:
        """In words, with the interval: ``accuracy drop 0.08 points (95%: -0.21 to 0.38)``."""
        between = f"({100 * self.confidence:g}%: {self._number(self.low)} to {self._number(self.high)})"
        if self.kind is DropKind.ACCURACY:
            return f"accuracy drop {self._number(self.value)} points {between}"
        if self.kind is DropKind.PERPLEXITY:
            return f"perplexity rise {self._number(self.value)}% {between}"
        return f"KL {self._number(self.value)} {between}"

    def _number(self, value: float) -> str:
        return f"{value:.3g}" if self.kind is DropKind.KL else f"{100 * value:.2f}"


class Trial(Document):
    """One true evaluation of a search.

    Parameters
    ----------
    name : str
        What was tried: ``per channel``, or ``uniform w4``.
    weight_bits : int
        Bits of the quantized weights with their overheads.
    average_bits : float
        The same per quantized weight.
    loss : float
        Measured KL to the float network, nats.
    drop : Drop
        Measured drop in the quality that is limited.
    within : bool
        Whether its value is within the limit.
    """

    name: Text
    weight_bits: Bits
    average_bits: float = Field(ge=0)
    loss: float
    drop: Drop
    within: bool


class SearchOutcome(enum.StrEnum):
    """Why a search ended; the value is the message shown to people."""

    NARROWED = "less than 1% of bits lie between this plan and one outside the limit"
    EVALUATIONS = "all evaluations were spent"
    LEAST = "the least that the options reach is within the limit already"
    UNIFORM = "a uniform plan smaller than what the search found is within the limit, too"
    NONE = "the greatest that the options reach is outside the limit"


class Search(Document):
    """How the least complexity within a limit on the measured drop was found.

    Parameters
    ----------
    limit : str
        The limit, such as ``0.1%``.
    data : str
        Name of the data on which the drops were measured.
    samples : int
        Number of its samples.
    outcome : SearchOutcome
        Why the search ended.
    trials : tuple of Trial
        All evaluations, in their order.
    """

    limit: Text
    data: Text
    samples: Size
    outcome: SearchOutcome
    trials: tuple[Trial, ...] = Field(min_length=1)
