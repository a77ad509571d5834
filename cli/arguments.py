"""The arguments of the `allocate` command, each with its help, shared by its stages."""

from __future__ import annotations

import enum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from ..quantizer import PointFit, Rounding, StepSearch
from ..sensitivity import Labels

__all__ = [
    "BudgetArg",
    "CorrectArg",
    "DataArg",
    "DeviceArg",
    "DocumentArg",
    "DrawsArg",
    "EvalArg",
    "FitArg",
    "ForceArg",
    "JsonArg",
    "LabelsArg",
    "MeanArg",
    "MemoryArg",
    "MethodArg",
    "MethodChoice",
    "ModelArg",
    "NeededBudgetArg",
    "OptionsArg",
    "OutArg",
    "PlanArg",
    "PowerArg",
    "ProfileArg",
    "QuietArg",
    "RoundingArg",
    "RunArg",
    "SamplesArg",
    "SearchArg",
    "SeedArg",
    "SolveUnit",
    "SolveUnitArg",
    "StdArg",
    "TimeArg",
    "UnitArg",
    "UnitChoice",
    "VersionArg",
    "WeightsArg",
]


class UnitChoice(enum.StrEnum):
    """What an option is chosen for."""

    AUTO = "auto"
    LAYER = "layer"
    CHANNEL = "channel"


class SolveUnit(enum.StrEnum):
    """What an option is chosen for, where nothing can be measured."""

    LAYER = "layer"
    CHANNEL = "channel"


class MethodChoice(enum.StrEnum):
    """How scores are measured."""

    FISHER = "fisher"
    EXACT = "exact"


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"apportion {version('apportion')}")
        raise typer.Exit


NETWORK, SCORES, RUN = "Network and data", "Scores", "Run"

ModelArg = Annotated[
    str | None,
    typer.Option(
        help="A .pt2 file, or file.py:factory, or module:factory. Default: the embedded digits network.",
        rich_help_panel=NETWORK,
    ),
]
WeightsArg = Annotated[
    Path | None, typer.Option(help="Weights for a factory, .safetensors.", rich_help_panel=NETWORK)
]
DataArg = Annotated[
    str | None,
    typer.Option(
        help="Calibration inputs: .npz or .safetensors (file.npz:train takes train_images), a folder or "
        ".zip of images, or file.py:loader.",
        rich_help_panel=NETWORK,
    ),
]
EvalArg = Annotated[
    str | None,
    typer.Option(help="Held-out inputs to judge the result on; same forms.", rich_help_panel=NETWORK),
]
MeanArg = Annotated[
    str | None,
    typer.Option(
        help="Mean per channel, e.g. 0.485,0.456,0.406; inputs become (x - mean) / std.",
        rich_help_panel=NETWORK,
    ),
]
StdArg = Annotated[str | None, typer.Option(help="Standard deviation per channel.", rich_help_panel=NETWORK)]
SamplesArg = Annotated[
    int, typer.Option(min=2, help="Use at most this many calibration inputs.", rich_help_panel=NETWORK)
]
OptionsArg = Annotated[
    str,
    typer.Option(
        help="Options to choose from: w4 (4 bits), w2x2 (two 2-bit points), w4g64 (a step per 64 inputs), "
        "w4t (a step per tensor); lists and ranges such as w2..8,w4x2.",
        rich_help_panel=SCORES,
    ),
]
MethodArg = Annotated[
    MethodChoice,
    typer.Option(
        help="fisher: all options from a few backward passes. exact: every layer and option measured.",
        rich_help_panel=SCORES,
    ),
]
LabelsArg = Annotated[
    Labels, typer.Option(help="Directions in which Fisher scores look at the output.", rich_help_panel=SCORES)
]
DrawsArg = Annotated[int, typer.Option(min=1, max=64, help="Directions per input.", rich_help_panel=SCORES)]
SearchArg = Annotated[StepSearch, typer.Option(help="How steps are searched.", rich_help_panel=SCORES)]
PowerArg = Annotated[float, typer.Option("--p", help="Exponent of --search pnorm.", rich_help_panel=SCORES)]
RoundingArg = Annotated[Rounding, typer.Option(help="How weights are rounded.", rich_help_panel=SCORES)]
FitArg = Annotated[
    PointFit, typer.Option("--points", help="How several points are fitted.", rich_help_panel=SCORES)
]
MemoryArg = Annotated[
    str, typer.Option(help="Bound of the working memory for scores.", rich_help_panel=SCORES)
]
SolveUnitArg = Annotated[
    SolveUnit, typer.Option(help="Choose per layer or per output channel.", rich_help_panel=RUN)
]
UnitArg = Annotated[
    UnitChoice,
    typer.Option(
        help="Choose per layer or per output channel; auto solves both and keeps the one that measures "
        "better.",
        rich_help_panel=RUN,
    ),
]
NeededBudgetArg = Annotated[
    str, typer.Option("--budget", help="The limit: 4b, 1.2MB, 300KiB, 25%.", rich_help_panel=RUN)
]
BudgetArg = Annotated[
    str | None,
    typer.Option(help="The limit: 4b, 1.2MB, 300KiB, 25%.", show_default=False, rich_help_panel=RUN),
]
CorrectArg = Annotated[
    bool, typer.Option("--bias-correction", help="Take back the mean shift of rounding.", rich_help_panel=RUN)
]
TimeArg = Annotated[
    float | None,
    typer.Option(min=0.001, help="Seconds after which the exact solver stops.", rich_help_panel=RUN),
]
OutArg = Annotated[Path, typer.Option("--out", "-o", help="Folder for all results.", rich_help_panel=RUN)]
ForceArg = Annotated[bool, typer.Option("--force", help="Replace what is there.", rich_help_panel=RUN)]
SeedArg = Annotated[
    int, typer.Option(min=0, max=2**32 - 1, help="Seed of all random draws.", rich_help_panel=RUN)
]
DeviceArg = Annotated[str, typer.Option(help="cpu, cuda or cuda:1.", rich_help_panel=RUN)]
JsonArg = Annotated[
    bool, typer.Option("--json", help="One JSON object on standard output.", rich_help_panel=RUN)
]
PlanArg = Annotated[
    Path | None, typer.Option("--plan", help="The plan; default: the one in --out.", rich_help_panel=RUN)
]
ProfileArg = Annotated[
    Path | None,
    typer.Option("--profile", help="The profile; default: the one in --out.", rich_help_panel=RUN),
]
RunArg = Annotated[Path, typer.Argument(help="Folder of a run.")]
DocumentArg = Annotated[Path, typer.Argument(help="Folder of a run, a plan.json or a profile.json.")]
VersionArg = Annotated[
    bool,
    typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=_print_version),
]
QuietArg = Annotated[bool, typer.Option("--quiet", "-q", help="No messages.", rich_help_panel=RUN)]
