"""The stage that writes a finished run in a form that other runtimes and toolkits read."""

from __future__ import annotations

import dataclasses
import enum
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ..errors import InputError
from ..export import OnnxExport, export_onnx
from .arguments import OUT, ForceArg, JsonArg, QuietArg, RunArg
from .console import Reporter

__all__ = ["export"]


class Format(enum.StrEnum):
    """What a run is exported as."""

    ONNX = "onnx"

    @property
    def file_name(self) -> str:
        """Where it goes by default, in the folder of the run."""
        return f"network.{self.value}"


FormatArg = Annotated[
    Format, typer.Option("--format", help="onnx: a file that onnxruntime runs.", show_default=False)
]
OutputArg = Annotated[Path | None, typer.Option(help="The file to write; default: one in the run's folder.")]


def export(
    format_: FormatArg,
    run: RunArg = OUT,
    output: OutputArg = None,
    force: ForceArg = False,
    json_: JsonArg = False,
    quiet: QuietArg = False,
) -> None:
    """Write a finished run for another runtime: a file of its own, the run stays as it is."""
    reporter = Reporter(quiet)
    path = run / format_.file_name if output is None else output
    if path.exists() and not force:
        raise InputError(f"{path} is there already; choose another --output, or --force to replace it")
    written = export_onnx(run, path)
    if json_:
        typer.echo(json.dumps(dataclasses.asdict(written), default=str))
        return
    reporter.result(_size_table(written))
    for line in _size_lines(written):
        reporter.result(line)
    reporter.say(f"wrote {path}")


def _size_table(written: OnnxExport) -> Table:
    """What every layer weighs in plan and file."""
    table = Table(title="size of the quantized weights")
    table.add_column("layer", overflow="fold")
    table.add_column("planned", justify="right")
    table.add_column("stored", justify="right")
    table.add_column("why it differs", overflow="fold")
    for layer in written.layers:
        planned, stored = (f"{bits / 8:,.0f} B" for bits in (layer.planned_bits, layer.stored_bits))
        table.add_row(layer.name, planned, stored, "; ".join(layer.notes))
    return table


def _size_lines(written: OnnxExport) -> list[str]:
    stored = written.file_bytes - written.graph_bytes
    return [
        f"{stored:,} bytes stored, {stored / written.planned_bytes - 1:+.1%} to the "
        f"{written.planned_bytes:,} of the plan; with the graph, which is in no budget, "
        f"{written.file_bytes:,} bytes",
        f"onnxruntime and PyTorch differ by at most {written.difference:.1g} on two random samples",
    ]
