"""The arguments of the command line that say how options are scored."""

from __future__ import annotations

from typing import Annotated

import typer

from ..quantizer import PointFit, RangeSearch, Rounding, StepSearch
from ..sensitivity import Labels
from .choices import AfterChoice, AfterOrAutoChoice, ScoresChoice

__all__ = [
    "OPTIONS",
    "UNITS",
    "AfterArg",
    "AfterByMethodArg",
    "AfterOrAutoArg",
    "AttentionArg",
    "DrawsArg",
    "FitArg",
    "LabelsArg",
    "MemoryArg",
    "OptionsArg",
    "PercentileArg",
    "PowerArg",
    "ProfileUnitArg",
    "RangesArg",
    "RoundingArg",
    "ScoresArg",
    "SearchArg",
]

OPTIONS = "w2..8"
SCORES = "Scores"
OptionsArg = Annotated[
    str,
    typer.Option(
        help="Options to choose from: w4 (4 bits), w2x2 (two 2-bit points), w4g64 (a step per 64 inputs), "
        "w4t (a step per tensor), w4a8 (what layers read in 8 bits, too), w4a8d (with a range per token); "
        "lists and ranges such as w2..8,w4x2 or w2..8a4..8.",
        rich_help_panel=SCORES,
    ),
]
ScoresArg = Annotated[
    ScoresChoice,
    typer.Option(
        help="fisher: all options from a few backward passes. exact: every layer and option measured.",
        rich_help_panel=SCORES,
    ),
]
AFTER = (
    "What makes the weights of the options that are scored: nearest, or gptq, adaquant (layer by layer) or "
    "brecq (block by block, briefly), which rank options as they will be after such a method"
)
AfterArg = Annotated[AfterChoice, typer.Option(help=f"{AFTER}.", rich_help_panel=SCORES)]
BY_METHOD = "under --method nearest and lapq, and for networks larger than --memory, nearest"
AfterByMethodArg = Annotated[
    AfterChoice | None,
    typer.Option("--after", help=f"{AFTER}. Default: gptq; {BY_METHOD}.", rich_help_panel=SCORES),
]
AfterOrAutoArg = Annotated[
    AfterOrAutoChoice | None,
    typer.Option(
        "--after",
        help=f"{AFTER}. auto: plans by nearest and by gptq compete, and what measures better is kept. "
        f"Default: auto with --method auto and a budget, else gptq; {BY_METHOD}.",
        rich_help_panel=SCORES,
    ),
]
LabelsArg = Annotated[
    Labels, typer.Option(help="Directions in which Fisher scores look at the output.", rich_help_panel=SCORES)
]
DrawsArg = Annotated[int, typer.Option(min=1, max=64, help="Directions per input.", rich_help_panel=SCORES)]
SearchArg = Annotated[StepSearch, typer.Option(help="How steps are searched.", rich_help_panel=SCORES)]
PowerArg = Annotated[
    float | None,
    typer.Option(
        "--p",
        help="Exponent of --search pnorm and of --ranges pnorm; default 2.",
        show_default=False,
        rich_help_panel=SCORES,
    ),
]
RangesArg = Annotated[
    RangeSearch | None,
    typer.Option(
        help="How ranges of activations are found; default loss, by the scores.",
        show_default=False,
        rich_help_panel=SCORES,
    ),
]
PercentileArg = Annotated[
    float | None,
    typer.Option(
        help="Share of an activation's numbers within its range, in percent, with --ranges percentile; "
        "default 99.99.",
        show_default=False,
        rich_help_panel=SCORES,
    ),
]
AttentionArg = Annotated[
    bool,
    typer.Option(
        "--attention",
        help="Store what attention multiplies with each other in low bits too, where activations are.",
        rich_help_panel=SCORES,
    ),
]
RoundingArg = Annotated[Rounding, typer.Option(help="How weights are rounded.", rich_help_panel=SCORES)]
FitArg = Annotated[
    PointFit, typer.Option("--points", help="How several points are fitted.", rich_help_panel=SCORES)
]
MemoryArg = Annotated[
    str,
    typer.Option(
        help="Bound of the working memory of every stage. A folder with more weights is read layer by layer.",
        rich_help_panel=SCORES,
    ),
]
UNITS = (
    "layer, channel (each output channel), tile:16 (16 channels share an option) or inputs:64 (64 input "
    "weights of a linear layer share one)"
)
ProfileUnitArg = Annotated[
    str,
    typer.Option(
        "--unit",
        help="What options will be chosen for: inputs:64 needs scores of its own, all others share theirs.",
        rich_help_panel=SCORES,
    ),
]
