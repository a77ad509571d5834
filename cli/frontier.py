"""The stage that measures the frontier, and its table."""

from __future__ import annotations

import typer
from rich.table import Table

from ..allocator import (
    FrontierPoint,
    MeasuredFrontier,
    draw_frontier,
    frontier_data,
    save_figure,
    write_frontier,
)
from ..errors import InfeasibleError, InputError
from ..quantizer import PointFit, Rounding, StepSearch
from ..reconstruct import MethodName
from ..sensitivity import Labels, check_feasible
from .along import Stretch, measure_frontier
from .arguments import (
    OUT,
    BlockLossArg,
    ConstraintsArg,
    ContextArg,
    CorrectArg,
    CountArg,
    DataArg,
    DeviceArg,
    DropArg,
    EvalArg,
    ExcludeArg,
    ForbidArg,
    ForceArg,
    FromArg,
    GranularityArg,
    IterationsArg,
    JsonArg,
    LayerOptionsArg,
    ManyMethodArg,
    MeanArg,
    ModelArg,
    OutArg,
    PinArg,
    QuietArg,
    SamplesArg,
    SeedArg,
    StdArg,
    TieArg,
    ToArg,
    TokenizerArg,
    UnitArg,
    WeightsArg,
)
from .choices import AfterOrAutoChoice, MethodChoice, ScoresChoice
from .console import Reporter
from .folder import RunFolder
from .inputs import source_of
from .limits import check_unit, limits_of
from .lossless import ANY_SIZE
from .making import making_of
from .rivals import rivals
from .score_arguments import (
    OPTIONS,
    AfterByMethodArg,
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
from .tables import samples_of

__all__ = ["draw_frontier_chart", "frontier", "frontier_table"]


def frontier(
    count: CountArg = 10,
    start: FromArg = None,
    end: ToArg = None,
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
    after: AfterByMethodArg = None,
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
    constraints: ConstraintsArg = None,
    tie: TieArg = None,
    pin: PinArg = None,
    exclude: ExcludeArg = None,
    forbid: ForbidArg = None,
    layer_options: LayerOptionsArg = None,
    unit: UnitArg = "auto",
    method: ManyMethodArg = MethodChoice.AUTO,
    iterations: IterationsArg = None,
    granularity: GranularityArg = None,
    block_loss: BlockLossArg = None,
    drop: DropArg = None,
    correct: CorrectArg = None,
    out: OutArg = OUT,
    force: ForceArg = False,
    seed: SeedArg = 0,
    device: DeviceArg = "cpu",
    json_: JsonArg = False,
    quiet: QuietArg = False,
) -> None:
    """Measure plans at several budgets, and all uniform options: writes frontier.json and its chart."""
    stretch, unit = Stretch(count, start, end), check_unit(unit)
    stretch.check()
    if unit not in ("auto", "layer") and scores is ScoresChoice.EXACT:
        raise InputError("--scores exact scores whole layers; use --unit layer with it, or --scores fisher")
    limits = limits_of(constraints, None, tie, pin, exclude, forbid, layer_options, None)
    if limits.budgets:
        raise InputError(
            f"the frontier has no single budget, and {constraints} gives {limits.budgets[0]}; leave budgets "
            "out of the file, and say where the frontier begins and ends with --from and --to"
        )
    by_default = AfterOrAutoChoice(method.scores_after(compared=False))
    scoring = scoring_of(
        options, scores, after, labels, draws, seed, search, p, rounding, points, memory, unit,
        ranges, percentile, attention, by_default,
    )  # fmt: skip
    making = making_of(method, iterations, granularity, block_loss, drop, correct, seed, memory)
    source = source_of(
        model, weights, data, eval_data, mean, std, samples, device, tokenizer, context, memory
    )
    reporter, folder = Reporter(quiet), RunFolder(out)
    folder.prepare((folder.frontier,), force=force)
    job = Job(folder, reporter)
    inputs = source.load().without(limits.constraints.exclude)
    scoring = scoring.suited(inputs.network)
    for given, budget in ("", ANY_SIZE), ("--from: ", start), ("--to: ", end):
        if budget is None:
            continue
        try:
            check_feasible(
                inputs.network,
                scoring.options,
                budget,
                "layer" if unit == "auto" else unit,
                constraints=limits.constraints,
                activations=scoring.activations,
            )
        except InfeasibleError as error:
            raise InfeasibleError(f"{given}{error}") from error
    ((profile, arrays),) = job.profiles(inputs, scoring, force=force)
    measured = measure_frontier(
        profile,
        arrays,
        rivals(profile, arrays, unit, nearest=making.method is MethodName.NEAREST),
        limits.constraints,
        stretch,
        inputs,
        job.finalizer(inputs, making),
        reporter,
    )
    write_frontier(folder.frontier, measured)
    folder.drop_weight_parts()
    charts = draw_frontier_chart(folder, measured)
    if json_:
        typer.echo(measured.model_dump_json(exclude_none=True))
    else:
        reporter.result(frontier_table(measured))
    reporter.say(f"wrote {folder.path}: {', '.join((folder.frontier.name, *charts))}")


def draw_frontier_chart(folder: RunFolder, measured: MeasuredFrontier) -> list[str]:
    """Draw the chart as PNG and SVG; names of the files."""
    figure = draw_frontier(frontier_data(measured))
    return [path.name for path in save_figure(figure, folder.path / "frontier")]


def frontier_table(measured: MeasuredFrontier) -> Table:
    """Every plan and every uniform option: size, predicted and measured loss, accuracy and what is lost."""
    first = measured.plans[0].measured
    table = Table(title=f"frontier: KL to float, measured on {first.data} ({samples_of(first)})")
    table.add_column("network", no_wrap=True)
    for name in ("bits", "predicted", "measured"):
        table.add_column(name, justify="right")
    if first.float_accuracy is not None:
        table.add_column("accuracy", justify="right")
        table.add_column("points lost (95%)", justify="right", no_wrap=True)
        row = ["float", "32.00", "0", "0", f"{100 * first.float_accuracy:.2f}%", "0"]
        if first.float_perplexity is not None:
            table.add_column("perplexity", justify="right")
            row.append(f"{first.float_perplexity:.4g}")
        table.add_row(*row)
    for point in sorted((*measured.plans, *measured.uniform), key=lambda point: point.weight_bits):
        table.add_row(*_row(point, uniform=point in measured.uniform))
    return table


def _row(point: FrontierPoint, *, uniform: bool) -> list[str]:
    measured = point.measured
    row = [
        f"uniform {point.name}" if uniform else f"per {point.unit}",
        f"{point.average_bits:.3f}",
        f"{point.predicted_loss:.3g}",
        f"{measured.loss:.3g}",
    ]
    if measured.accuracy is not None:
        row.append(f"{100 * measured.accuracy:.2f}%")
        drop = measured.drop
        row.append(f"{100 * drop.value:.2f} ({100 * drop.low:.1f}..{100 * drop.high:.1f})" if drop else "-")
    if measured.perplexity is not None:
        row.append(f"{measured.perplexity:.4g}")
    return row
