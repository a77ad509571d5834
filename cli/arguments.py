"""The arguments of the `allocate` command, each with its help, shared by its stages."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from ..reconstruct import BlockLoss, Correction, Granularity, PresetName
from .bundle import defaults_of
from .choices import MethodChoice, ObjectiveChoice
from .score_arguments import UNITS

__all__ = [
    "OUT",
    "BlockLossArg",
    "BudgetArg",
    "ComparedBudgetArg",
    "ConstraintsArg",
    "ContextArg",
    "CorrectArg",
    "CountArg",
    "DataArg",
    "DeviceArg",
    "DocumentArg",
    "DropArg",
    "EvalArg",
    "ExcludeArg",
    "ForbidArg",
    "ForceArg",
    "FromArg",
    "GranularityArg",
    "IterationsArg",
    "JsonArg",
    "LayerOptionsArg",
    "LosslessArg",
    "ManyMethodArg",
    "MaxDropArg",
    "MeanArg",
    "MethodArg",
    "ModelArg",
    "ObjectiveArg",
    "OutArg",
    "PinArg",
    "PlanArg",
    "PresetArg",
    "ProfileArg",
    "QuietArg",
    "RefineArg",
    "RunArg",
    "SamplesArg",
    "SeedArg",
    "SolveUnitArg",
    "StdArg",
    "TableArg",
    "TieArg",
    "TimeArg",
    "ToArg",
    "TokenizerArg",
    "UnitArg",
    "UntilStableArg",
    "VersionArg",
    "WeightsArg",
]


OUT = Path("apportion-run")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"apportion {version('apportion')}")
        raise typer.Exit


NETWORK, LIMITS, RUN = "Network and data", "Budgets and constraints", "Run"

ModelArg = Annotated[
    str | None,
    typer.Option(
        help="A .pt2 file, file.py:factory, module:factory, or hf:folder (a local folder of the transformers "
        "library). Default: the embedded digits network.",
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
        ".zip of images, a .txt file of text, or file.py:loader.",
        rich_help_panel=NETWORK,
    ),
]
EvalArg = Annotated[
    str | None,
    typer.Option(help="Held-out inputs to judge the result on; same forms.", rich_help_panel=NETWORK),
]
TokenizerArg = Annotated[
    Path | None,
    typer.Option(
        help="What cuts texts into tokens: a tokenizer.json, a SentencePiece .model or a folder with one. "
        "Default: hf:folder's own.",
        show_default=False,
        rich_help_panel=NETWORK,
    ),
]
ContextArg = Annotated[
    int | None,
    typer.Option(
        min=2,
        help="Tokens of a sample of text. Default: what hf:folder takes, at most 512.",
        show_default=False,
        rich_help_panel=NETWORK,
    ),
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
UntilStableArg = Annotated[
    bool,
    typer.Option(
        "--until-stable",
        help="Double the inputs, from 64 up to --samples, until the plans no longer change.",
        rich_help_panel=NETWORK,
    ),
]
ComparedBudgetArg = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        help="With --until-stable: a size at which plans are compared, may be repeated; default: three.",
        show_default=False,
        rich_help_panel=NETWORK,
    ),
]
SolveUnitArg = Annotated[
    str, typer.Option("--unit", help=f"What an option is chosen for: {UNITS}.", rich_help_panel=RUN)
]
UnitArg = Annotated[
    str,
    typer.Option(
        help=f"What an option is chosen for: {UNITS}; auto solves per layer and per channel and keeps what "
        "measures better.",
        rich_help_panel=RUN,
    ),
]
BudgetArg = Annotated[
    list[str] | None,
    typer.Option(
        help="A limit: 4b, 1.2MB, 300KiB, 25%, macs=80M, bops=2.5G, act_memory=200KiB, or one on a --table "
        "such as latency=3.5; may be repeated, and all are kept.",
        show_default=False,
        rich_help_panel=LIMITS,
    ),
]
CountArg = Annotated[
    int, typer.Option(min=1, max=1000, help="Number of budgets to measure.", rich_help_panel=LIMITS)
]
FromArg = Annotated[
    str | None,
    typer.Option(
        "--from", help="First budget, such as 2.5b; default: the least there is.", rich_help_panel=LIMITS
    ),
]
ToArg = Annotated[
    str | None,
    typer.Option("--to", help="Last budget; default: all that helps is bought.", rich_help_panel=LIMITS),
]
LosslessArg = Annotated[
    bool,
    typer.Option("--lossless", help="In place of a budget: --max-drop 0.1%.", rich_help_panel=LIMITS),
]
MaxDropArg = Annotated[
    str | None,
    typer.Option(
        help="In place of a budget, what may be lost: 0.1% (accuracy points), 0.01kl (KL to the float "
        "network) or 1%ppl (perplexity). The least size within it is searched with about a dozen true "
        "measurements.",
        show_default=False,
        rich_help_panel=LIMITS,
    ),
]


def _apply_preset(context: typer.Context, name: PresetName | None) -> PresetName | None:
    """Let the preset's settings be the defaults of this command."""
    if name is not None:
        context.default_map = {**(context.default_map or {}), **defaults_of(PresetName(name))}
    return name


PresetArg = Annotated[
    PresetName | None,
    typer.Option(
        help="A published method as a whole: options, unit, objective, scores, method, corrections, and 8 "
        "bits in the first and the last layer (not all-low-bit), whatever --options. What is given beside it "
        "holds.",
        is_eager=True,
        callback=_apply_preset,
        show_default=False,
        rich_help_panel=LIMITS,
    ),
]
TableArg = Annotated[
    list[str] | None,
    typer.Option(
        help="Costs of a quantity, latency=FILE: .csv with layer,option,cost, or .json of the same.",
        rich_help_panel=LIMITS,
    ),
]
ConstraintsArg = Annotated[
    Path | None,
    typer.Option(help="A TOML file of budgets, tables and all that follows.", rich_help_panel=LIMITS),
]
TieArg = Annotated[
    list[str] | None,
    typer.Option(
        help="Layers that share one option: 'layer1.*.conv1' or 'q,k,v'; auto: all that read one input.",
        rich_help_panel=LIMITS,
    ),
]
PinArg = Annotated[
    list[str] | None,
    typer.Option(help="The option of some layers: conv1=w8.", rich_help_panel=LIMITS),
]
ExcludeArg = Annotated[
    list[str] | None,
    typer.Option(help="Layers that stay float: 'head.*'.", rich_help_panel=LIMITS),
]
ForbidArg = Annotated[
    list[str] | None,
    typer.Option(help="Options that some layers must not have: 'layer3.*=w2,w3'.", rich_help_panel=LIMITS),
]
LayerOptionsArg = Annotated[
    list[str] | None,
    typer.Option(help="The only options that some layers may have: fc=w6..8.", rich_help_panel=LIMITS),
]
MethodArg = Annotated[
    MethodChoice,
    typer.Option(
        help="How the integer weights are found: nearest, gptq (seconds), adaquant, lapq, adaround or brecq "
        "(minutes and more). auto: the cheapest of nearest, gptq and brecq that comes near the best.",
        rich_help_panel=RUN,
    ),
]
ManyMethodArg = Annotated[
    MethodChoice,
    typer.Option(
        help="How the integer weights of every plan are found, as for the whole job; auto: gptq.",
        rich_help_panel=RUN,
    ),
]
IterationsArg = Annotated[
    int | None,
    typer.Option(min=1, max=10**6, help="Iterations of learning per layer or block.", rich_help_panel=RUN),
]
GranularityArg = Annotated[
    Granularity | None,
    typer.Option(
        help="What learns together under brecq: a layer, a block (the default), all blocks of one "
        "resolution, or the network.",
        show_default=False,
        rich_help_panel=RUN,
    ),
]
BlockLossArg = Annotated[
    BlockLoss | None,
    typer.Option(
        help="What brecq and adaround minimise at the output of a block or layer: mse, the default, or "
        "fisher, squared errors weighted by what they do to the network's output.",
        show_default=False,
        rich_help_panel=RUN,
    ),
]
DropArg = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=1.0,
        help="Share of a block's inputs that brecq and adaround take from the float network, drawn anew at "
        "every step; default 0.",
        show_default=False,
        rich_help_panel=RUN,
    ),
]
CorrectArg = Annotated[
    list[Correction] | None,
    typer.Option(
        help="What is corrected after the method, may be repeated: bias (mean shift of rounding), batch-norm "
        "(mean and scale of every layer's outputs) or tune (all biases, learned from the network's output).",
        rich_help_panel=RUN,
    ),
]
TimeArg = Annotated[
    float | None,
    typer.Option(min=0.001, help="Seconds after which a search by scores stops.", rich_help_panel=RUN),
]
ObjectiveArg = Annotated[
    ObjectiveChoice,
    typer.Option(
        help="additive: losses of units add up. block: with interactions within blocks, per layer. joint: "
        "with all interactions. auto: joint below the layer.",
        rich_help_panel=RUN,
    ),
]
RefineArg = Annotated[
    int,
    typer.Option(
        min=0,
        help="Move the plan while its measured loss falls, with at most this many moves measured for each "
        "kind of scores.",
        rich_help_panel=RUN,
    ),
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
DocumentArg = Annotated[
    Path, typer.Argument(help="Folder of a run, a plan.json, a profile.json or a frontier.json.")
]
VersionArg = Annotated[
    bool,
    typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=_print_version),
]
QuietArg = Annotated[bool, typer.Option("--quiet", "-q", help="No messages.", rich_help_panel=RUN)]
