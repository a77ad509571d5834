"""How a profile is measured, from the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..allocator import parse_unit
from ..quantizer import Option, PointFit, Quantizer, Rounding, StepSearch, parse_options
from ..sensitivity import FisherSettings, Labels
from .arguments import MethodChoice
from .inputs import bytes_of

__all__ = ["Scoring", "scoring_of"]


@dataclass(frozen=True)
class Scoring:
    """How a profile is measured."""

    options: tuple[Option, ...]
    quantizer: Quantizer
    method: Literal["fisher", "exact"]
    settings: FisherSettings


def scoring_of(
    options: str,
    method: MethodChoice,
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
    return Scoring(parse_options(options), quantizer, method.value, settings)
