"""How a profile is measured, from the command line."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, cast

from ..allocator import parse_unit
from ..network import Data, Network
from ..quantizer import Option, PointFit, Quantizer, Rounding, StepSearch, parse_options
from ..reconstruct import AdaQuantOptions, BlockOptions, Gptq, GptqOptions, LearnedRounding, Learning
from ..sensitivity import After, FisherSettings, Labels, OptionWeights
from .choices import AfterChoice, AfterOrAutoChoice, ScoresChoice
from .inputs import bytes_of

__all__ = ["Scoring", "scoring_of"]

SHORT_ITERATIONS = 100
"""Of learned rounding for scores: every block learns once for every option."""
RIVALS: tuple[After, ...] = ("nearest", "gptq")
"""Kinds of scores that compete under ``auto``."""


@dataclass(frozen=True)
class Scoring:
    """How a profile is measured."""

    options: tuple[Option, ...]
    quantizer: Quantizer
    method: Literal["fisher", "exact"]
    settings: FisherSettings
    after: After
    rivals: tuple[After, ...] = ()

    def kinds(self) -> tuple[Scoring, ...]:
        """What is measured: one kind of scores, or those that compete."""
        return tuple(replace(self, after=after) for after in self.rivals) or (self,)

    def weights(self, network: Network, data: Data) -> OptionWeights | None:
        """What makes the options' weights; None: rounding to nearest."""
        if self.after == "nearest":
            return None
        settings = Gptq(memory_bytes=self.settings.memory_bytes)
        if self.after == "gptq":
            return GptqOptions(network, data, self.quantizer, settings)
        if self.after == "adaquant":
            return AdaQuantOptions(network, data, self.quantizer, settings)
        learning = Learning(iterations=SHORT_ITERATIONS, seed=self.settings.seed)
        method = LearnedRounding(start=settings, learning=learning, memory_bytes=settings.memory_bytes)
        return BlockOptions(network, data, self.quantizer, self.options, method, self.settings.cut)


def scoring_of(
    options: str,
    scores: ScoresChoice,
    after: AfterChoice | AfterOrAutoChoice,
    labels: Labels,
    draws: int,
    seed: int,
    search: StepSearch,
    p: float,
    rounding: Rounding,
    points: PointFit,
    memory: str,
    unit: str,
) -> Scoring:
    """How a profile is measured, from arguments as they are written."""
    settings = FisherSettings(
        labels=labels,
        draws=draws,
        seed=seed,
        memory_bytes=bytes_of(memory),
        cut=None if unit == "auto" else parse_unit(unit).cut,
    )
    quantizer = Quantizer(search=search, p=p, rounding=rounding, fit=points)
    rivals = RIVALS if after is AfterOrAutoChoice.AUTO else ()
    kind = RIVALS[0] if rivals else cast(After, after.value)
    return Scoring(parse_options(options), quantizer, scores.value, settings, kind, rivals)
