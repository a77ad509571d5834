"""The stages of the whole job as commands of their own: profile, solve, finalize."""

from __future__ import annotations

import typer

from ..allocator import read_plan, write_plan
from ..errors import InputError
from ..quantizer import PointFit, Rounding, StepSearch
from ..sensitivity import Labels, check_options, read_profile, solve_plan, with_confidence
from .arguments import (
    OUT,
    BlockLossArg,
    BudgetArg,
    ComparedBudgetArg,
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
    MeanArg,
    MethodArg,
    ModelArg,
    ObjectiveArg,
    OutArg,
    PinArg,
    PlanArg,
    ProfileArg,
    QuietArg,
    SamplesArg,
    SeedArg,
    SolveUnitArg,
    StdArg,
    TableArg,
    TieArg,
    TimeArg,
    TokenizerArg,
    UntilStableArg,
    WeightsArg,
)
from .choices import AfterChoice, MethodChoice, ObjectiveChoice, ScoresChoice
from .console import Reporter
from .folder import RunFolder
from .inputs import source_of
from .limits import check_unit, limits_of
from .making import making_of
from .report import report_plan
from .score_arguments import (
    OPTIONS,
    AfterArg,
    AttentionArg,
    DrawsArg,
    FitArg,
    LabelsArg,
    MemoryArg,
    OptionsArg,
    PercentileArg,
    PowerArg,
    ProfileUnitArg,
    RangesArg,
    RoundingArg,
    ScoresArg,
    SearchArg,
)
from .scoring import scoring_of
from .stages import Job
from .tables import activation_table, float_lines, profile_table
from .until_stable import check_until_stable, stable_profile

__all__ = ["finalize", "profile", "solve"]


def profile(
    model: ModelArg = None,
    weights: WeightsArg = None,
    data: DataArg = None,
    mean: MeanArg = None,
    std: StdArg = None,
    tokenizer: TokenizerArg = None,
    context: ContextArg = None,
    samples: SamplesArg = 512,
    until_stable: UntilStableArg = False,
    budget: ComparedBudgetArg = None,
    options: OptionsArg = OPTIONS,
    scores: ScoresArg = ScoresChoice.FISHER,
    after: AfterArg = AfterChoice.NEAREST,
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
    source = source_of(model, weights, data, None, mean, std, samples, device, tokenizer, context, memory)
    reporter, folder = Reporter(quiet), RunFolder(out)
    folder.prepare((), force=force)
    inputs = source.load().without(exclude or ())
    check_options(inputs.network, scoring.options, scoring.settings.cut)
    if until_stable:
        found = stable_profile(inputs, scoring, budget or (), unit, folder, reporter, force=force)
    else:
        ((found, _),) = Job(folder, reporter).profiles(inputs, scoring, force=force)
    if json_:
        typer.echo(found.model_dump_json(exclude_none=True))
    else:
        reporter.result(profile_table(found))
        for line in float_lines(inputs.network):
            reporter.result(line)
        if found.activations is not None:
            reporter.result(activation_table(found.activations))


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
    where = profile or folder.any_profile()
    scores, arrays = read_profile(where)
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
    others = [place for place in folder.profiles() if place != where] if profile is None else []
    if others:
        reporter.say(f"scores: {where}; others are there too, --profile {others[0]} takes those")
    write_plan(folder.plan, plan)
    report_plan(plan, folder, reporter, json_)


def finalize(
    plan: PlanArg = None,
    model: ModelArg = None,
    weights: WeightsArg = None,
    data: DataArg = None,
    eval_data: EvalArg = None,
    mean: MeanArg = None,
    std: StdArg = None,
    tokenizer: TokenizerArg = None,
    context: ContextArg = None,
    samples: SamplesArg = 512,
    profile: ProfileArg = None,
    method: MethodArg = MethodChoice.AUTO,
    iterations: IterationsArg = None,
    granularity: GranularityArg = None,
    block_loss: BlockLossArg = None,
    drop: DropArg = None,
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
    making = making_of(method, iterations, granularity, block_loss, drop, correct, seed, memory)
    source = source_of(
        model, weights, data, eval_data, mean, std, samples, device, tokenizer, context, memory
    )
    reporter, folder = Reporter(quiet), RunFolder(out)
    job = Job(folder, reporter)
    stored = read_plan(plan or folder.plan)
    folder.prepare(folder.finished()[1:] if plan is None else folder.finished(), force=force)
    inputs = source.load().without(stored.constraints.exclude if stored.constraints else ())
    # What a search measured, and what a preset did, were other weights.
    chosen = job.edited(stored, inputs.network).model_copy(update={"search": None, "preset": None})
    judged = job.finalize(inputs, job.profiles_of(chosen, profile), [chosen], making)
    kept = judged.kept.plan
    held_out = job.judge_held_out(inputs, judged.kept.finalized)
    if held_out:
        kept = kept.model_copy(update={"measured": held_out[0]})
    job.save(inputs, kept, judged.kept.finalized)
    report_plan(kept, folder, reporter, json_)
