"""The `allocate` command: which stages run, in which order, and what is said about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from ..allocator import parse_budget, read_plan, write_plan
from ..errors import InputError
from ..quantizer import PointFit, Quantizer, Rounding, StepSearch, parse_options
from ..sensitivity import FisherSettings, Labels, check_feasible, read_profile, solve_plan
from .arguments import (
    BudgetArg,
    CorrectArg,
    DataArg,
    DeviceArg,
    DocumentArg,
    DrawsArg,
    EvalArg,
    FitArg,
    ForceArg,
    JsonArg,
    LabelsArg,
    MeanArg,
    MemoryArg,
    MethodArg,
    MethodChoice,
    ModelArg,
    NeededBudgetArg,
    OptionsArg,
    OutArg,
    PlanArg,
    PowerArg,
    ProfileArg,
    QuietArg,
    RoundingArg,
    RunArg,
    SamplesArg,
    SearchArg,
    SeedArg,
    SolveUnit,
    SolveUnitArg,
    StdArg,
    TimeArg,
    UnitArg,
    UnitChoice,
    VersionArg,
    WeightsArg,
)
from .charts import draw_charts
from .console import Reporter
from .folder import RunFolder
from .inputs import Source, bytes_of, numbers_of
from .stages import Job, Scoring
from .tables import plan_lines, plan_table, profile_table, quality_table

__all__ = ["app"]

HELP = """
Find how to store every layer of a trained PyTorch network so that its quality is the highest a budget
allows, prove how close to optimal that is, and write the quantized network.

[bold]Examples[/bold]

  allocate --budget 4b
      the embedded digits network at 4 stored bits per weight: try this first

  allocate --budget 3.5b --model net.pt2 --data calib.npz --out run
      your network, exported by torch.export.save, and a few hundred inputs

  allocate --budget 300KiB --model nets.py:build --weights net.safetensors --data photos/ --mean 0.5 --std 0.5
      a Python factory, its weights, and a folder of images

  allocate --budget 4.5b --options w4x1..2 --unit channel
      hardware that knows 4 bits only: one or two 4-bit points per output channel

[bold]Budgets[/bold]: 4b (average stored bits per quantized weight, overheads included), 1.2MB or 300KiB
(the whole file), 25% (of the float network).

[bold]Stages[/bold]: the same job in steps that can be cut and resumed: profile, solve, finalize, evaluate,
show, plot. Each reads and writes documents in the --out folder.
"""

OUT = Path("apportion-run")
OPTIONS = "w2..8"

app = typer.Typer(
    name="allocate",
    help=HELP,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def allocate(
    context: typer.Context,
    budget: BudgetArg = None,
    model: ModelArg = None,
    weights: WeightsArg = None,
    data: DataArg = None,
    eval_data: EvalArg = None,
    mean: MeanArg = None,
    std: StdArg = None,
    samples: SamplesArg = 512,
    options: OptionsArg = OPTIONS,
    method: MethodArg = MethodChoice.FISHER,
    labels: LabelsArg = Labels.PROJECTED,
    draws: DrawsArg = 2,
    search: SearchArg = StepSearch.MSE,
    p: PowerArg = 2.0,
    rounding: RoundingArg = Rounding.NEAREST,
    points: FitArg = PointFit.JOINT,
    memory: MemoryArg = "2GiB",
    unit: UnitArg = UnitChoice.AUTO,
    bias_correction: CorrectArg = False,
    time_limit: TimeArg = None,
    out: OutArg = OUT,
    force: ForceArg = False,
    seed: SeedArg = 0,
    device: DeviceArg = "cpu",
    json_: JsonArg = False,
    quiet: QuietArg = False,
    version: VersionArg = False,
) -> None:
    if context.invoked_subcommand is not None:
        _refuse_early_options(context)
        return
    if not _given(context):
        typer.echo(context.get_help())
        return
    if budget is None:
        raise InputError("say how much may be spent: --budget 4b, or 300KiB, or 25%")
    parse_budget(budget)
    if unit is UnitChoice.CHANNEL and method is MethodChoice.EXACT:
        raise InputError("--method exact scores whole layers; use --unit layer with it, or --method fisher")
    scoring = _scoring(options, method, labels, draws, seed, search, p, rounding, points, memory)
    source = _source(model, weights, data, eval_data, mean, std, samples, device)
    reporter, folder = Reporter(quiet), RunFolder(out)
    folder.prepare(folder.finished(), force=force)
    job = Job(folder, reporter)
    inputs = source.load()
    # With auto, a plan per layer is enough.
    check_feasible(inputs.network, scoring.options, budget, "channel" if unit == "channel" else "layer")
    profile, arrays = job.profile(inputs, scoring, force=force)
    plans = job.solve(profile, arrays, budget, unit.value, time_limit)
    judged = job.finalize(inputs, profile, plans, correct=bias_correction)
    uniform = judged.uniform
    plan, uniform_quality = judged.kept.plan, uniform.quality if uniform else None
    competing = [judged.kept.finalized, *([uniform.finalized] if uniform else [])]
    held_out = job.judge_held_out(inputs, competing)
    if held_out:
        plan = plan.model_copy(update={"measured": held_out[0]})
        uniform_quality = held_out[1] if uniform else None
    job.save(inputs, plan, judged.kept.finalized)
    charts = draw_charts(folder, profile, arrays, plan)
    if json_:
        _print_json(plan, folder, seconds=job.seconds, charts=charts)
        return
    reporter.result(plan_table(plan))
    reporter.result(quality_table(plan, uniform.plan if uniform else None, uniform_quality))
    for line in plan_lines(plan):
        reporter.result(line)
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in job.seconds.items())
    files = ("plan.json", "weights.safetensors", "program.json", "profile.json", *charts)
    reporter.say(f"wrote {folder.path}: {', '.join(files)}")
    reporter.say(f"seconds: {stages}")


@app.command()
def profile(
    model: ModelArg = None,
    weights: WeightsArg = None,
    data: DataArg = None,
    mean: MeanArg = None,
    std: StdArg = None,
    samples: SamplesArg = 512,
    options: OptionsArg = OPTIONS,
    method: MethodArg = MethodChoice.FISHER,
    labels: LabelsArg = Labels.PROJECTED,
    draws: DrawsArg = 2,
    search: SearchArg = StepSearch.MSE,
    p: PowerArg = 2.0,
    rounding: RoundingArg = Rounding.NEAREST,
    points: FitArg = PointFit.JOINT,
    memory: MemoryArg = "2GiB",
    out: OutArg = OUT,
    force: ForceArg = False,
    seed: SeedArg = 0,
    device: DeviceArg = "cpu",
    json_: JsonArg = False,
    quiet: QuietArg = False,
) -> None:
    """Score every option of every layer: writes profile.json; an interrupted run goes on where it stopped."""
    scoring = _scoring(options, method, labels, draws, seed, search, p, rounding, points, memory)
    source = _source(model, weights, data, None, mean, std, samples, device)
    reporter, folder = Reporter(quiet), RunFolder(out)
    folder.prepare((), force=force)
    job = Job(folder, reporter)
    scores, _ = job.profile(source.load(), scoring, force=force)
    if json_:
        typer.echo(scores.model_dump_json(exclude_none=True))
    else:
        reporter.result(profile_table(scores))


@app.command()
def solve(
    budget: NeededBudgetArg,
    profile: ProfileArg = None,
    unit: SolveUnitArg = SolveUnit.CHANNEL,
    time_limit: TimeArg = None,
    out: OutArg = OUT,
    force: ForceArg = False,
    json_: JsonArg = False,
    quiet: QuietArg = False,
) -> None:
    """Choose the options for a budget from a profile: writes plan.json; nothing is measured again."""
    reporter, folder = Reporter(quiet), RunFolder(out)
    scores, arrays = read_profile(profile or folder.profile)
    plan = solve_plan(scores, arrays, budget, unit.value, time_limit_s=time_limit)
    folder.prepare((folder.plan,), force=force)
    write_plan(folder.plan, plan)
    _report(plan, folder, reporter, json_)


@app.command()
def finalize(
    plan: PlanArg = None,
    model: ModelArg = None,
    weights: WeightsArg = None,
    data: DataArg = None,
    eval_data: EvalArg = None,
    mean: MeanArg = None,
    std: StdArg = None,
    samples: SamplesArg = 512,
    profile: ProfileArg = None,
    bias_correction: CorrectArg = False,
    out: OutArg = OUT,
    force: ForceArg = False,
    device: DeviceArg = "cpu",
    json_: JsonArg = False,
    quiet: QuietArg = False,
) -> None:
    """Compute the integer weights of a plan, also of one edited by hand, and measure what it is worth.

    The best uniform plan within the budget competes, and is kept where it measures better; not with a plan
    edited by hand, unless --profile is given.
    """
    source = _source(model, weights, data, eval_data, mean, std, samples, device)
    reporter, folder = Reporter(quiet), RunFolder(out)
    job = Job(folder, reporter)
    stored = read_plan(plan or folder.plan)
    folder.prepare(folder.finished()[1:] if plan is None else folder.finished(), force=force)
    inputs = source.load()
    chosen = job.edited(stored, inputs.network)
    judged = job.finalize(inputs, job.profile_of(chosen, profile), [chosen], correct=bias_correction)
    kept = judged.kept.plan
    held_out = job.judge_held_out(inputs, [judged.kept.finalized])
    if held_out:
        kept = kept.model_copy(update={"measured": held_out[0]})
    job.save(inputs, kept, judged.kept.finalized)
    _report(kept, folder, reporter, json_)


@app.command()
def evaluate(
    run: RunArg = OUT,
    model: ModelArg = None,
    weights: WeightsArg = None,
    data: DataArg = None,
    mean: MeanArg = None,
    std: StdArg = None,
    device: DeviceArg = "cpu",
    json_: JsonArg = False,
) -> None:
    """Measure a finished run against the float network on other data; nothing is written."""
    source = _source(model, weights, data, data, mean, std, None, device)
    job = Job(RunFolder(run), Reporter())
    plan, quality = job.evaluate(source.load(), run)
    if json_:
        typer.echo(quality.model_dump_json(exclude_none=True))
    else:
        job.reporter.result(quality_table(plan.model_copy(update={"measured": quality}), None, None))


@app.command()
def show(document: DocumentArg = OUT, json_: JsonArg = False) -> None:
    """Print a plan or a profile as a table."""
    reporter = Reporter()
    path = document / "plan.json" if document.is_dir() else document
    if path.is_file() and path.name.startswith("profile"):
        scores, _ = read_profile(path)
        if json_:
            typer.echo(scores.model_dump_json(exclude_none=True))
        else:
            reporter.result(profile_table(scores))
        return
    _report(read_plan(path), RunFolder(path.parent), reporter, json_)


@app.command()
def plot(run: RunArg = OUT, quiet: QuietArg = False) -> None:
    """Draw the charts of a run again from its documents."""
    folder = RunFolder(run)
    scores, arrays = read_profile(folder.profile)
    plan = read_plan(folder.plan) if folder.plan.exists() else None
    Reporter(quiet).say(f"wrote {', '.join(draw_charts(folder, scores, arrays, plan))} to {run}")


def _report(plan: Any, folder: RunFolder, reporter: Reporter, json_: bool) -> None:
    if json_:
        _print_json(plan, folder)
        return
    reporter.result(plan_table(plan))
    for line in plan_lines(plan):
        reporter.result(line)


def _print_json(plan: Any, folder: RunFolder, **extra: Any) -> None:
    typer.echo(
        json.dumps(
            {"folder": str(folder.path), "plan": plan.model_dump(mode="json", exclude_none=True), **extra}
        )
    )


def _scoring(
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
) -> Scoring:
    settings = FisherSettings(labels=labels, draws=draws, seed=seed, memory_bytes=bytes_of(memory))
    quantizer = Quantizer(search=search, p=p, rounding=rounding, fit=points)
    return Scoring(parse_options(options), quantizer, method.value, settings)


def _source(
    model: str | None,
    weights: Path | None,
    data: str | None,
    eval_data: str | None,
    mean: str | None,
    std: str | None,
    samples: int | None,
    device: str,
) -> Source:
    return Source(
        model, weights, data, eval_data, numbers_of(mean, "--mean"), numbers_of(std, "--std"), samples, device
    )


def _given(context: typer.Context) -> list[str]:
    """Parameters that were written on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]


def _refuse_early_options(context: typer.Context) -> None:
    """Options before a stage's name would be ignored without a word."""
    for name in _given(context):
        option, stage = name.rstrip("_").replace("_", "-"), context.invoked_subcommand
        raise InputError(
            f"--{option} stands before '{stage}'; write it behind: allocate {stage} --{option} ..."
        )
