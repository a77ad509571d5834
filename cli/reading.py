"""Stages that only read a finished run: evaluate, show, plot."""

from __future__ import annotations

from pathlib import Path

import typer

from ..allocator import read_frontier, read_plan
from ..sensitivity import read_profile
from .arguments import (
    OUT,
    ContextArg,
    DataArg,
    DeviceArg,
    DocumentArg,
    JsonArg,
    MeanArg,
    ModelArg,
    QuietArg,
    RunArg,
    StdArg,
    TokenizerArg,
    WeightsArg,
)
from .charts import draw_charts
from .console import Reporter
from .folder import RunFolder
from .frontier import draw_frontier_chart, frontier_table
from .inputs import source_of
from .report import report_plan
from .stages import Job, own_profile
from .tables import profile_table, quality_table

__all__ = ["evaluate", "plot", "show"]


def evaluate(
    run: RunArg = OUT,
    model: ModelArg = None,
    weights: WeightsArg = None,
    data: DataArg = None,
    mean: MeanArg = None,
    std: StdArg = None,
    tokenizer: TokenizerArg = None,
    context: ContextArg = None,
    device: DeviceArg = "cpu",
    json_: JsonArg = False,
) -> None:
    """Measure a finished run against the float network on other data; nothing is written."""
    source = source_of(model, weights, data, data, mean, std, None, device, tokenizer, context)
    job = Job(RunFolder(run), Reporter())
    plan, quality = job.evaluate(source.load(), run)
    if json_:
        typer.echo(quality.model_dump_json(exclude_none=True))
    else:
        job.reporter.result(quality_table(plan.model_copy(update={"measured": quality}), None, None))


def show(document: DocumentArg = OUT, json_: JsonArg = False) -> None:
    """Print a plan, a profile or a measured frontier as a table."""
    reporter = Reporter()
    path = _most_finished(RunFolder(document)) if document.is_dir() else document
    if path.is_file() and path.name.startswith("profile"):
        scores, _ = read_profile(path)
        if json_:
            typer.echo(scores.model_dump_json(exclude_none=True))
        else:
            reporter.result(profile_table(scores))
        return
    if path.is_file() and path.name.startswith("frontier"):
        measured = read_frontier(path)
        if json_:
            typer.echo(measured.model_dump_json(exclude_none=True))
        else:
            reporter.result(frontier_table(measured))
        return
    report_plan(read_plan(path), RunFolder(path.parent), reporter, json_)


def plot(run: RunArg = OUT, quiet: QuietArg = False) -> None:
    """Draw the charts of a run again from its documents."""
    folder = RunFolder(run)
    plan = read_plan(folder.plan) if folder.plan.exists() else None
    reporter = Reporter(quiet)
    found = own_profile(folder, plan) if plan is not None else read_profile(folder.any_profile())
    if found is None:
        reporter.warn(f"no profile in {run} is the plan's own, so that only the plan is drawn")
    scores, arrays = found if found is not None else (None, None)
    charts = draw_charts(folder, scores, arrays, plan)
    if folder.frontier.exists():
        charts += draw_frontier_chart(folder, read_frontier(folder.frontier))
    reporter.say(f"wrote {', '.join(charts)} to {run}")


def _most_finished(folder: RunFolder) -> Path:
    """The document of a run that says most: its plan, else its frontier, else its profile."""
    for place in (folder.plan, folder.frontier, *folder.profiles()):
        if place.exists():
            return place
    return folder.plan
