"""The `allocate` command: which stages run, in which order, and what is said about it."""

from __future__ import annotations

import typer

from ..allocator import read_plan, write_plan
from ..errors import InputError
from ..quantizer import PointFit, RangeSearch, Rounding, StepSearch
from ..reconstruct import MethodName
from ..sensitivity import Labels, check_feasible, read_profile, solve_plan, with_confidence
from .arguments import (
    OPTIONS,
    OUT,
    AfterArg,
    AttentionArg,
    BudgetArg,
    ComparedBudgetArg,
    ConstraintsArg,
    CorrectArg,
    DataArg,
    DeviceArg,
    DrawsArg,
    EvalArg,
    ExcludeArg,
    FitArg,
    ForbidArg,
    ForceArg,
    IterationsArg,
    JsonArg,
    LabelsArg,
    LayerOptionsArg,
    LosslessArg,
    MaxDropArg,
    MeanArg,
    MemoryArg,
    MethodArg,
    ModelArg,
    ObjectiveArg,
    OptionsArg,
    OutArg,
    PercentileArg,
    PinArg,
    PlanArg,
    PowerArg,
    ProfileArg,
    ProfileUnitArg,
    QuietArg,
    RangesArg,
    RefineArg,
    RoundingArg,
    SamplesArg,
    ScoresArg,
    SearchArg,
    SeedArg,
    SolveUnitArg,
    StdArg,
    TableArg,
    TieArg,
    TimeArg,
    UnitArg,
    UntilStableArg,
    VersionArg,
    WeightsArg,
)
from .charts import draw_charts
from .choices import AfterChoice, MethodChoice, ObjectiveChoice, ScoresChoice
from .console import Reporter
from .early import given_options, refuse_early_options
from .export import export
from .folder import RunFolder
from .frontier import frontier
from .inputs import source_of
from .latency import latency
from .limits import check_unit, limits_of
from .lossless import ANY_SIZE, searched_data, tolerance_of
from .making import making_of
from .reading import evaluate, plot, show
from .report import print_json, report_plan, warn_of_doubt
from .scoring import scoring_of
from .stages import Job
from .tables import activation_table, plan_lines, plan_table, profile_table, quality_table
from .until_stable import check_until_stable, load_for_rounds, stable_profile

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

  allocate --lossless --model net.pt2 --data calib.npz --eval-data labelled.npz
      the smallest network that loses at most 0.1 points of accuracy, measured

[bold]Budgets[/bold]: 4b (average stored bits per quantized weight, overheads included), 1.2MB or 300KiB
(the whole file), 25% (of the float network).

[bold]Stages[/bold]: the same job in steps that can be cut and resumed: profile, solve, finalize, evaluate,
frontier, show, plot, export, latency. Each reads and writes documents in the --out folder.
"""

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
    lossless: LosslessArg = False,
    max_drop: MaxDropArg = None,
    model: ModelArg = None,
    weights: WeightsArg = None,
    data: DataArg = None,
    eval_data: EvalArg = None,
    mean: MeanArg = None,
    std: StdArg = None,
    samples: SamplesArg = 512,
    options: OptionsArg = OPTIONS,
    scores: ScoresArg = ScoresChoice.FISHER,
    after: AfterArg = AfterChoice.NEAREST,
    labels: LabelsArg = Labels.PROJECTED,
    draws: DrawsArg = 2,
    search: SearchArg = StepSearch.MSE,
    p: PowerArg = 2.0,
    ranges: RangesArg = RangeSearch.MSE,
    percentile: PercentileArg = 99.99,
    attention: AttentionArg = False,
    rounding: RoundingArg = Rounding.NEAREST,
    points: FitArg = PointFit.JOINT,
    memory: MemoryArg = "2GiB",
    table: TableArg = None,
    constraints: ConstraintsArg = None,
    tie: TieArg = None,
    pin: PinArg = None,
    exclude: ExcludeArg = None,
    forbid: ForbidArg = None,
    layer_options: LayerOptionsArg = None,
    unit: UnitArg = "auto",
    objective: ObjectiveArg = ObjectiveChoice.AUTO,
    refine: RefineArg = 0,
    method: MethodArg = MethodChoice.AUTO,
    iterations: IterationsArg = None,
    correct: CorrectArg = None,
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
        refuse_early_options(context)
        return
    if not given_options(context):
        typer.echo(context.get_help())
        return
    unit = check_unit(unit)
    limits = limits_of(constraints, budget, tie, pin, exclude, forbid, layer_options, table)
    tolerance = tolerance_of(lossless, max_drop, limits.budgets)
    if unit not in ("auto", "layer") and scores is ScoresChoice.EXACT:
        raise InputError("--scores exact scores whole layers; use --unit layer with it, or --scores fisher")
    if tolerance is not None and (refine or objective is not ObjectiveChoice.AUTO):
        raise InputError("--refine and --objective go with --budget; a lossless search chooses for itself")
    if scores is ScoresChoice.EXACT and (refine or objective is ObjectiveChoice.JOINT):
        raise InputError("--refine and --objective joint need Fisher scores; use --scores fisher")
    scoring = scoring_of(
        options, scores, after, labels, draws, seed, search, p, rounding, points, memory, unit,
        ranges, percentile, attention,
    )  # fmt: skip
    making = making_of(method, iterations, correct, seed, memory)
    source = source_of(model, weights, data, eval_data, mean, std, samples, device)
    reporter, folder = Reporter(quiet), RunFolder(out)
    folder.prepare(folder.finished(), force=force)
    job = Job(folder, reporter)
    inputs = source.load().without(limits.constraints.exclude)
    if tolerance is not None:
        searched_data(inputs, tolerance)
    check_feasible(
        inputs.network,
        scoring.options,
        limits.budgets or (ANY_SIZE,),
        # With auto, a plan per layer is enough.
        "layer" if unit == "auto" else unit,
        constraints=limits.constraints,
        tables=limits.tables,
        activations=scoring.activations,
    )
    profile, arrays = job.profile(inputs, scoring, force=force)
    if tolerance is None:
        nearest = making.method is MethodName.NEAREST
        plans = job.solve(profile, arrays, limits, unit, objective.objective(), time_limit, nearest=nearest)
        if refine:
            plans = [job.refine(inputs, profile, arrays, plans[0], refine), *plans]
        judged = job.finalize(inputs, profile, plans, making)
    else:
        judged = job.least(inputs, profile, arrays, limits, tolerance, unit, making, time_limit_s=time_limit)
    uniform = judged.uniform
    plan, uniform_quality = judged.kept.plan, uniform.quality if uniform else None
    competing = [judged.kept.finalized, *([uniform.finalized] if uniform else [])]
    # A search on the held-out data has measured there already, with the drop.
    searched_there = tolerance is not None and searched_data(inputs, tolerance) is inputs.held_out
    held_out = [] if searched_there else job.judge_held_out(inputs, competing)
    if held_out:
        plan = plan.model_copy(update={"measured": held_out[0]})
        uniform_quality = held_out[1] if uniform else None
    plan = with_confidence(profile, arrays, plan)
    warn_of_doubt(plan, reporter)
    job.save(inputs, plan, judged.kept.finalized)
    charts = draw_charts(folder, profile, arrays, plan)
    if json_:
        print_json(plan, folder, seconds=job.seconds, charts=charts)
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
    until_stable: UntilStableArg = False,
    budget: ComparedBudgetArg = None,
    options: OptionsArg = OPTIONS,
    scores: ScoresArg = ScoresChoice.FISHER,
    after: AfterArg = AfterChoice.NEAREST,
    labels: LabelsArg = Labels.PROJECTED,
    draws: DrawsArg = 2,
    search: SearchArg = StepSearch.MSE,
    p: PowerArg = 2.0,
    ranges: RangesArg = RangeSearch.MSE,
    percentile: PercentileArg = 99.99,
    attention: AttentionArg = False,
    rounding: RoundingArg = Rounding.NEAREST,
    points: FitArg = PointFit.JOINT,
    memory: MemoryArg = "2GiB",
    unit: ProfileUnitArg = "channel",
    exclude: ExcludeArg = None,
    out: OutArg = OUT,
    force: ForceArg = False,
    seed: SeedArg = 0,
    device: DeviceArg = "cpu",
    json_: JsonArg = False,
    quiet: QuietArg = False,
) -> None:
    """Score every option of every layer: writes profile.json; an interrupted run goes on where it stopped."""
    check_until_stable(until_stable, scores.value, after.value, budget or ())
    scoring = scoring_of(
        options, scores, after, labels, draws, seed, search, p, rounding, points, memory, check_unit(unit),
        ranges, percentile, attention,
    )  # fmt: skip
    if until_stable and scoring.activations is not None:
        raise InputError(
            "--until-stable compares plans of weights; leave the activations out of --options for it, and "
            "profile with the number of samples that it finds"
        )
    source = source_of(model, weights, data, None, mean, std, samples, device)
    reporter, folder = Reporter(quiet), RunFolder(out)
    folder.prepare((), force=force)
    if until_stable:
        inputs = load_for_rounds(source).without(exclude or ())
        found = stable_profile(inputs, scoring, budget or (), unit, folder, reporter, force=force)
    else:
        inputs = source.load().without(exclude or ())
        found, _ = Job(folder, reporter).profile(inputs, scoring, force=force)
    if json_:
        typer.echo(found.model_dump_json(exclude_none=True))
    else:
        reporter.result(profile_table(found))
        if found.activations is not None:
            reporter.result(activation_table(found.activations))


@app.command()
def solve(
    budget: BudgetArg = None,
    table: TableArg = None,
    constraints: ConstraintsArg = None,
    tie: TieArg = None,
    pin: PinArg = None,
    exclude: ExcludeArg = None,
    forbid: ForbidArg = None,
    layer_options: LayerOptionsArg = None,
    profile: ProfileArg = None,
    unit: SolveUnitArg = "channel",
    objective: ObjectiveArg = ObjectiveChoice.AUTO,
    time_limit: TimeArg = None,
    out: OutArg = OUT,
    force: ForceArg = False,
    json_: JsonArg = False,
    quiet: QuietArg = False,
) -> None:
    """Choose the options for a budget from a profile: writes plan.json; nothing is measured again."""
    limits = limits_of(constraints, budget, tie, pin, exclude, forbid, layer_options, table)
    if not limits.budgets:
        raise InputError("say how much may be spent: --budget 4b, or 300KiB, or 25%")
    reporter, folder = Reporter(quiet), RunFolder(out)
    scores, arrays = read_profile(profile or folder.profile)
    plan = solve_plan(
        scores,
        arrays,
        limits.budgets,
        check_unit(unit),
        objective=objective.objective(),
        constraints=limits.constraints,
        tables=limits.tables,
        time_limit_s=time_limit,
    )
    plan = with_confidence(scores, arrays, plan)
    folder.prepare((folder.plan,), force=force)
    write_plan(folder.plan, plan)
    report_plan(plan, folder, reporter, json_)


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
    method: MethodArg = MethodChoice.AUTO,
    iterations: IterationsArg = None,
    correct: CorrectArg = None,
    memory: MemoryArg = "2GiB",
    seed: SeedArg = 0,
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
    making = making_of(method, iterations, correct, seed, memory)
    source = source_of(model, weights, data, eval_data, mean, std, samples, device)
    reporter, folder = Reporter(quiet), RunFolder(out)
    job = Job(folder, reporter)
    stored = read_plan(plan or folder.plan)
    folder.prepare(folder.finished()[1:] if plan is None else folder.finished(), force=force)
    inputs = source.load().without(stored.constraints.exclude if stored.constraints else ())
    chosen = job.edited(stored, inputs.network)
    judged = job.finalize(inputs, job.profile_of(chosen, profile), [chosen], making)
    kept = judged.kept.plan
    held_out = job.judge_held_out(inputs, [judged.kept.finalized])
    if held_out:
        kept = kept.model_copy(update={"measured": held_out[0]})
    job.save(inputs, kept, judged.kept.finalized)
    report_plan(kept, folder, reporter, json_)


for stage in (frontier, evaluate, show, plot, export, latency):
    app.command()(stage)
