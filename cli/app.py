"""The `allocate` command: which stages the whole job runs, in which order, and what is said about it."""

from __future__ import annotations

import typer

from ..errors import InputError
from ..quantizer import PointFit, Rounding, StepSearch
from ..reconstruct import PRESETS, MethodName
from ..sensitivity import Labels, check_feasible, with_confidence
from .arguments import (
    OUT,
    BlockLossArg,
    BudgetArg,
    ConstraintsArg,
    ContextArg,
    CorrectArg,
    DataArg,
    DeviceArg,
    DropArg,
    EvalArg,
    ExcludeArg,
    ForbidArg,
    ForceArg,
    GranularityArg,
    IterationsArg,
    JsonArg,
    LayerOptionsArg,
    LosslessArg,
    MaxDropArg,
    MeanArg,
    MethodArg,
    ModelArg,
    ObjectiveArg,
    OutArg,
    PinArg,
    PresetArg,
    QuietArg,
    RefineArg,
    SamplesArg,
    SeedArg,
    StdArg,
    TableArg,
    TieArg,
    TimeArg,
    TokenizerArg,
    UnitArg,
    VersionArg,
    WeightsArg,
)
from .bundle import check_bundle, with_ends
from .charts import draw_charts
from .choices import AfterOrAutoChoice, MethodChoice, ObjectiveChoice, ScoresChoice
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
from .report import print_json, warn_of_doubt
from .score_arguments import (
    OPTIONS,
    AfterOrAutoArg,
    AttentionArg,
    DrawsArg,
    FitArg,
    LabelsArg,
    MemoryArg,
    OptionsArg,
    PercentileArg,
    PowerArg,
    RangesArg,
    RoundingArg,
    ScoresArg,
    SearchArg,
)
from .scoring import scoring_of
from .stages import Job
from .steps import finalize, profile, solve
from .tables import float_lines, plan_lines, plan_table, quality_table

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

  allocate --budget 3b --preset brecq --model net.pt2 --data calib.npz
      a published method as a whole: options, first and last layer, scores, rounding

  allocate --lossless --model net.pt2 --data calib.npz --eval-data labelled.npz
      the smallest network that loses at most 0.1 points of accuracy, measured

[bold]Budgets[/bold]: 4b (average stored bits per quantized weight, overheads included), 1.2MB or 300KiB
(all that is stored but the file's header), 25% (of the float network).

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
    command: typer.Context,
    budget: BudgetArg = None,
    lossless: LosslessArg = False,
    max_drop: MaxDropArg = None,
    preset: PresetArg = None,
    model: ModelArg = None,
    weights: WeightsArg = None,
    data: DataArg = None,
    eval_data: EvalArg = None,
    mean: MeanArg = None,
    std: StdArg = None,
    tokenizer: TokenizerArg = None,
    context: ContextArg = None,
    samples: SamplesArg = 512,
    options: OptionsArg = OPTIONS,
    scores: ScoresArg = ScoresChoice.FISHER,
    after: AfterOrAutoArg = None,
    labels: LabelsArg = Labels.PROJECTED,
    draws: DrawsArg = 2,
    search: SearchArg = StepSearch.MSE,
    p: PowerArg = None,
    ranges: RangesArg = None,
    percentile: PercentileArg = None,
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
    granularity: GranularityArg = None,
    block_loss: BlockLossArg = None,
    drop: DropArg = None,
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
    if command.invoked_subcommand is not None:
        refuse_early_options(command)
        return
    if not given_options(command):
        typer.echo(command.get_help())
        return
    unit = check_unit(unit)
    limits = limits_of(constraints, budget, tie, pin, exclude, forbid, layer_options, table)
    if preset is not None and (lossless or max_drop):
        raise InputError(f"--preset {preset} goes with a --budget; a limit on the drop chooses for itself")
    tolerance = tolerance_of(lossless, max_drop, limits.budgets)
    by_default = AfterOrAutoChoice(method.scores_after(compared=tolerance is None))
    scoring = scoring_of(
        options, scores, after, labels, draws, seed, search, p, rounding, points, memory, unit,
        ranges, percentile, attention, by_default,
    )  # fmt: skip
    if preset is not None:
        given = {name: command.params[name] for name in given_options(command)}
        check_bundle(preset, limits, scoring, given)
    if unit not in ("auto", "layer") and scores is ScoresChoice.EXACT:
        raise InputError("--scores exact scores whole layers; use --unit layer with it, or --scores fisher")
    if tolerance is not None and (refine or objective is not ObjectiveChoice.AUTO):
        raise InputError("--refine and --objective go with --budget; a lossless search chooses for itself")
    if tolerance is not None and after is AfterOrAutoChoice.AUTO:
        raise InputError("--after auto goes with --budget; a lossless search takes one kind of scores")
    if scores is ScoresChoice.EXACT and (
        refine or objective in (ObjectiveChoice.BLOCK, ObjectiveChoice.JOINT)
    ):
        raise InputError("--refine, --objective block and joint need Fisher scores; use --scores fisher")
    making = making_of(method, iterations, granularity, block_loss, drop, correct, seed, memory)
    source = source_of(
        model, weights, data, eval_data, mean, std, samples, device, tokenizer, context, memory
    )
    reporter, folder = Reporter(quiet), RunFolder(out)
    folder.prepare(folder.finished(), force=force)
    job = Job(folder, reporter)
    inputs = source.load().without(limits.constraints.exclude)
    scoring = scoring.suited(inputs.network)
    if preset is not None:
        limits, scoring = with_ends(preset, limits, inputs.network, scoring)
    if tolerance is not None:
        searched_data(inputs, tolerance)
    by_output_error = preset is not None and PRESETS[preset].by_output_error
    if not by_output_error:
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
    scored = [] if by_output_error else job.profiles(inputs, scoring, force=force)
    profile, arrays = scored[0] if scored else (None, None)
    if profile is None:
        judged = job.finalize(inputs, (), [job.points(inputs, limits, scoring)], making)
    elif tolerance is None:
        nearest = making.method is MethodName.NEAREST
        plans = []
        for kind, each in zip(scoring.kinds(), scored, strict=True):
            own = job.solve(*each, limits, unit, objective.objective(), time_limit, nearest=nearest)
            moved = [job.refine(inputs, kind, *each, own, refine, time_limit)] if refine else []
            plans += [*moved, *own]
        judged = job.finalize(inputs, [each for each, _ in scored], plans, making)
        profile, arrays = next(
            each for each in scored if each[0].fingerprint.text() == judged.kept.plan.profile
        )
    else:
        judged = job.least(inputs, profile, arrays, limits, tolerance, unit, making, time_limit_s=time_limit)
    uniform = judged.uniform
    plan, uniform_quality = judged.kept.plan, uniform.quality if uniform else None
    others = [uniform.finalized] if uniform else []
    # A search on the held-out data has measured there already, with the drop.
    searched_there = tolerance is not None and searched_data(inputs, tolerance) is inputs.held_out
    held_out = [] if searched_there else job.judge_held_out(inputs, judged.kept.finalized, others)
    if held_out:
        plan = plan.model_copy(update={"measured": held_out[0]})
        uniform_quality = held_out[1] if uniform else None
    if profile is not None:
        plan = with_confidence(profile, arrays, plan)
    if preset is not None:
        plan = plan.model_copy(update={"preset": str(preset)})
    warn_of_doubt(plan, reporter)
    job.save(inputs, plan, judged.kept.finalized)
    charts = draw_charts(folder, profile, arrays, plan)
    if json_:
        print_json(plan, folder, seconds=job.seconds, charts=charts)
        return
    reporter.result(plan_table(plan))
    reporter.result(quality_table(plan, uniform.plan if uniform else None, uniform_quality))
    for line in [*float_lines(inputs.network), *plan_lines(plan)]:
        reporter.result(line)
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in job.seconds.items())
    profiles = [folder.profile(found.after).name for found, _ in scored]
    files = ["plan.json", "weights.safetensors", "program.json", *profiles, *charts]
    reporter.say(f"wrote {folder.path}: {', '.join(files)}")
    reporter.say(f"seconds: {stages}")


for stage in (profile, solve, finalize, frontier, evaluate, show, plot, export, latency):
    app.command()(stage)
