"""The stage that writes a finished run in a form that other runtimes and toolkits read."""

from __future__ import annotations

import dataclasses
import enum
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.table import Table

from ..errors import InputError
from ..export import TOOLKITS, OnnxExport, export_onnx, export_recipe, export_state
from .arguments import OUT, ForceArg, JsonArg, QuietArg, RunArg
from .console import Reporter

__all__ = ["Kernels", "KernelsArg", "export"]


class Kernels(enum.StrEnum):
    """What multiplies the weights of linear layers in ONNX."""

    FLOAT = "float"
    INTEGER = "integer"


class Format(enum.StrEnum):
    """What a run is exported as."""

    ONNX = "onnx"
    SAFETENSORS = "safetensors"
    TORCHAO = "torchao"
    COMPRESSED_TENSORS = "compressed-tensors"
    MODELOPT = "modelopt"
    AUTOROUND = "autoround"
    NNCF = "nncf"

    @property
    def file_name(self) -> str:
        """Where it goes by default, in the folder of the run."""
        if self.value in TOOLKITS:
            return f"{self.value}{TOOLKITS[self.value].suffix}"
        return f"network.{self.value}"


FormatArg = Annotated[
    Format,
    typer.Option(
        "--format",
        help="onnx: a file that onnxruntime runs. safetensors: plain float weights by name. The others: a "
        "document that gives the layers the same bits in that toolkit.",
        show_default=False,
    ),
]
OutputArg = Annotated[Path | None, typer.Option(help="The file to write; default: one in the run's folder.")]
KernelsArg = Annotated[
    Kernels,
    typer.Option(
        help="float: as PyTorch computes. integer: linear layers by low-bit kernels of "
        "onnxruntime, which round what enters to 8 bits."
    ),
]
LowerArg = Annotated[
    bool,
    typer.Option(
        "--lower", help="Store what a toolkit cannot express as the next thing that is not less, and say so."
    ),
]


def export(
    format_: FormatArg,
    run: RunArg = OUT,
    output: OutputArg = None,
    kernels: KernelsArg = Kernels.FLOAT,
    lower: LowerArg = False,
    force: ForceArg = False,
    json_: JsonArg = False,
    quiet: QuietArg = False,
) -> None:
    """Write a finished run for another runtime or toolkit: one file, the run stays as it is."""
    reporter = Reporter(quiet)
    if lower and format_.value not in TOOLKITS:
        raise InputError(f"--lower goes with recipes for toolkits; {format_} stores every plan as it is")
    if kernels is not Kernels.FLOAT and format_ is not Format.ONNX:
        raise InputError(f"--kernels goes with --format onnx; {format_} does not say what multiplies")
    path = run / format_.file_name if output is None else output
    if path.exists() and not force:
        raise InputError(f"{path} is there already; choose another --output, or --force to replace it")
    account: dict[str, Any] = {}
    results: list[RenderableType] = []
    if format_ is Format.ONNX:
        written = export_onnx(run, path, kernels=kernels.value)
        account = dataclasses.asdict(written)
        results = [_size_table(written), *_size_lines(written)]
    elif format_ is Format.SAFETENSORS:
        account = {"file_bytes": export_state(run, path)}
    else:
        lowered = export_recipe(run, path, format_.value, lower=lower).lowered
        account = {"lowered": lowered}
        results = [f"{layer}: {what}" for layer, what in lowered.items()]
    if json_:
        typer.echo(json.dumps({**account, "path": str(path)}))
    else:
        for result in results:
            reporter.result(result)
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
    compared = "not compared: PyTorch itself fails on made-up samples of this network, or gives NaN"
    if written.relative_difference is not None:
        compared = (
            f"onnxruntime and PyTorch differ by at most {written.difference:.1g} on two made-up samples, "
            f"{written.relative_difference:.1g} of the greatest output"
        )
    return [
        f"{stored:,} bytes stored, {stored / written.planned_bytes - 1:+.1%} to the "
        f"{written.planned_bytes:,} of the plan; with the graph, which is in no budget, "
        f"{written.file_bytes:,} bytes",
        compared,
    ]
