"""The stage that times every layer under every option on this machine."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ..documents import replace_file
from ..errors import InputError
from ..export import LayerLatency, measure_latency
from ..quantizer import parse_options
from .arguments import (
    ContextArg,
    DataArg,
    ExcludeArg,
    ForceArg,
    JsonArg,
    MeanArg,
    ModelArg,
    QuietArg,
    StdArg,
    TokenizerArg,
    WeightsArg,
)
from .console import Reporter
from .export import Kernels, KernelsArg
from .inputs import source_of
from .score_arguments import (
    OPTIONS,
    OptionsArg,
)

__all__ = ["latency"]

TABLE = Path("latency.csv")
TableFileArg = Annotated[Path, typer.Option("--output", help="The table to write.")]
RepeatsArg = Annotated[
    int, typer.Option(min=3, max=10_000, help="Rounds over all options, of which the median counts.")
]


def latency(
    model: ModelArg = None,
    weights: WeightsArg = None,
    data: DataArg = None,
    mean: MeanArg = None,
    std: StdArg = None,
    tokenizer: TokenizerArg = None,
    context: ContextArg = None,
    options: OptionsArg = OPTIONS,
    exclude: ExcludeArg = None,
    kernels: KernelsArg = Kernels.FLOAT,
    repeats: RepeatsArg = 30,
    output: TableFileArg = TABLE,
    force: ForceArg = False,
    json_: JsonArg = False,
    quiet: QuietArg = False,
) -> None:
    """Time layers in onnxruntime on one thread of this machine: milliseconds per layer and option.

    Writes the table that --table latency=latency.csv --budget latency=... read.
    """
    reporter = Reporter(quiet)
    if output.exists() and not force:
        raise InputError(f"{output} is there already; choose another --output, or --force to replace it")
    if output.suffix != ".csv":
        raise InputError(f"--output is {output}; a table of costs is written as .csv")
    chosen = parse_options(options)
    inputs = (
        source_of(model, weights, data, None, mean, std, 2, "cpu", tokenizer, context)
        .load()
        .without(exclude or ())
    )
    with reporter.stage("latency") as step:
        measured = measure_latency(
            inputs.network,
            inputs.calibration.inputs[:1],
            chosen,
            kernels=kernels.value,
            repeats=repeats,
            on_layer=step,
        )
    lines = ["layer,option,cost", *(f"{each.layer},{each.option},{each.median_ms:.6g}" for each in measured)]
    with replace_file(output) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if json_:
        entries = [dataclasses.asdict(each) for each in measured]
        typer.echo(json.dumps({"path": str(output), "latencies": entries}))
    else:
        reporter.result(_latency_table(measured))
    reporter.say(f"wrote {output}")


def _latency_table(measured: Sequence[LayerLatency]) -> Table:
    """Milliseconds, with half the distance of the quartiles in percent of them."""
    options = list(dict.fromkeys(each.option for each in measured))
    times = {(each.layer, each.option): each for each in measured}
    table = Table(title="milliseconds of one sample: median, and half the quartile range")
    table.add_column("layer", overflow="fold")
    for option in options:
        table.add_column(option, justify="right")
    for layer in dict.fromkeys(each.layer for each in measured):
        cells = [times.get((layer, option)) for option in options]
        table.add_row(layer, *(_cell(cell) for cell in cells))
    return table


def _cell(measured: LayerLatency | None) -> str:
    if measured is None:
        return "-"
    return f"{measured.median_ms:.3g} ±{50 * measured.spread_ms / measured.median_ms:.0f}%"
