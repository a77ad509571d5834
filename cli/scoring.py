"""How a profile is measured, from the command line."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, cast

from ..allocator import parse_unit
from ..errors import InputError
from ..network import Data, Network
from ..quantizer import (
    Option,
    PointFit,
    Quantizer,
    RangeSearch,
    RangeSettings,
    Rounding,
    StepSearch,
    parse_option_set,
)
from ..reconstruct import AdaQuantOptions, BlockOptions, Gptq, GptqOptions, LearnedRounding, Learning
from ..sensitivity import ActivationSettings, After, FisherSettings, Labels, OptionWeights
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
    activations: ActivationSettings | None = None
    asked: bool = True
    """Whether this kind of scores was asked for."""

    def suited(self, network: Network) -> Scoring:
        """The same for a network: those of nearest rounding by default where weights are streamed.

        There, GPTQ of all options takes some times as long as that of the plan.
        """
        return self if self.asked or not network.is_streamed else replace(self, after="nearest", rivals=())

    def kinds(self) -> tuple[Scoring, ...]:
        """What is measured: one kind of scores, or those that compete."""
        return tuple(replace(self, after=after) for after in self.rivals) or (self,)

    def weights(self, network: Network, data: Data, *, unseen: bool = False) -> OptionWeights | None:
        """What makes the options' weights; None: rounding to nearest.

        Parameters
        ----------
        unseen : bool
            Whether those of GPTQ and AdaQuant are to score on their own samples as on others.
        """
        if self.after == "nearest":
            return None
        settings = Gptq(memory_bytes=self.settings.memory_bytes)
        if self.after == "gptq":
            return GptqOptions(network, data, self.quantizer, settings, unseen=unseen)
        if self.after == "adaquant":
            return AdaQuantOptions(network, data, self.quantizer, settings, unseen=unseen)
        learning = Learning(iterations=SHORT_ITERATIONS, seed=self.settings.seed)
        method = LearnedRounding(start=settings, learning=learning, memory_bytes=settings.memory_bytes)
        return BlockOptions(network, data, self.quantizer, self.options, method, self.settings.cut)


def scoring_of(
    options: str,
    scores: ScoresChoice,
    after: AfterChoice | AfterOrAutoChoice | None,
    labels: Labels,
    draws: int,
    seed: int,
    search: StepSearch,
    p: float | None,
    rounding: Rounding,
    points: PointFit,
    memory: str,
    unit: str,
    ranges: RangeSearch | None = None,
    percentile: float | None = None,
    attention: bool = False,
    by_default: AfterOrAutoChoice = AfterOrAutoChoice.NEAREST,
) -> Scoring:
    """How a profile is measured, from arguments as they are written.

    Parameters
    ----------
    after : choice, optional
        What makes the options' weights.
    p, ranges, percentile : optional
        As `RangeSettings`, and as its defaults where they are not given; `p` is that of `Quantizer` too.
    by_default : choice
        What does where that is not given.

    Raises
    ------
    InputError
        What cannot be read or is out of its range, or arguments that nothing here uses: about activations
        that stay float, or about another search than the one that is asked for.
    """
    chosen = parse_option_set(options)
    defaults = RangeSettings()
    found, exponent = None, defaults.p if p is None else p
    if chosen.activations:
        percent = defaults.percentile if percentile is None else percentile
        settings_ = RangeSettings(ranges or defaults.search, percent, exponent)
        found = ActivationSettings(chosen.activations, settings_, attention)
    for name, given in (("ranges", ranges), ("percentile", percentile), ("attention", attention or None)):
        if found is None and given is not None:
            raise InputError(
                f"--{name} is for activations in low bits, and --options {options} names none; write for "
                f"example --options {chosen.weights[-1]}a8"
            )
    _refuse_unused(search, (found.ranges if found else defaults).search, p, percentile)
    settings = FisherSettings(
        labels=labels,
        draws=draws,
        seed=seed,
        memory_bytes=bytes_of(memory),
        cut=None if unit == "auto" else parse_unit(unit).cut,
    )
    quantizer = Quantizer(search=search, p=exponent, rounding=rounding, fit=points)
    kind = (after or by_default).value
    rivals = RIVALS if kind == AfterOrAutoChoice.AUTO.value else ()
    return Scoring(
        chosen.weights,
        quantizer,
        scores.value,
        settings,
        RIVALS[0] if rivals else cast(After, kind),
        rivals,
        found,
        after is not None,
    )


def _refuse_unused(
    search: StepSearch, ranges: RangeSearch, p: float | None, percentile: float | None
) -> None:
    """Refuse numbers that neither the search of steps nor that of ranges takes."""
    if percentile is not None and ranges is not RangeSearch.PERCENTILE:
        raise InputError(
            f"--percentile goes with --ranges percentile, and ranges are found by {ranges} here; add "
            "that, or leave out --percentile"
        )
    if p is not None and search is not StepSearch.P_NORM and ranges is not RangeSearch.P_NORM:
        raise InputError(
            f"--p is the exponent of --search pnorm and of --ranges pnorm, and steps are found by {search} "
            f"here and ranges by {ranges}; add one of the two, or leave out --p"
        )
