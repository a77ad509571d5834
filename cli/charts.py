"""Draw a run's charts into its folder."""

from __future__ import annotations

from ..allocator import (
    SIZE,
    ParetoPoint,
    Plan,
    draw_pareto,
    draw_plan,
    pareto_curve,
    pareto_data,
    parse_budget,
    plan_data,
    save_figure,
)
from ..sensitivity import (
    Profile,
    ProfileArrays,
    activation_loss,
    additive_loss,
    draw_sensitivity,
    pose,
    sensitivity_data,
    uniform_options,
    uniform_within,
)
from .folder import RunFolder

__all__ = ["draw_charts"]


def draw_charts(
    folder: RunFolder, profile: Profile | None, arrays: ProfileArrays | None, plan: Plan | None
) -> list[str]:
    """Draw what the documents allow, each as PNG and SVG; names of the files."""
    figures = {} if profile is None else {"sensitivity": draw_sensitivity(sensitivity_data(profile, plan))}
    if plan is not None and profile is not None:
        # A uniform plan that was kept stands on the curve of the layer plans it competed with.
        unit = plan.unit if arrays is not None else "layer"
        posed = pose(profile, arrays, unit, constraints=plan.constraints)
        curve = pareto_curve(posed.problem, posed.savings([0]))
        curve = curve.raised(activation_loss(plan))
        point, uniform = _points(profile, arrays, plan)
        figures["pareto"] = draw_pareto(
            pareto_data(
                curve,
                plan.complexity,
                plan=point,
                uniform=uniform,
                held="the plan's activations" if plan.activations else "",
            )
        )
    if plan is not None:
        figures["plan"] = draw_plan(plan_data(plan))
    written: list[str] = []
    for name, figure in figures.items():
        written.extend(path.name for path in save_figure(figure, folder.path / name))
    return written


def _points(
    profile: Profile, arrays: ProfileArrays | None, plan: Plan
) -> tuple[ParetoPoint, list[ParetoPoint]]:
    """The plan and the uniform options, with what was measured of them on the same data.

    Predictions are sums of scores, as the curve's are, whatever objective the plan was chosen by. Uniform
    options that break a budget of another quantity than the size are left out: with activations in more bits
    than the plan may have, they would stand below its bound.
    """
    guard, weight_bits = plan.guard, plan.complexity.size_bits - plan.complexity.fixed_bits
    measured = plan.measured.loss if plan.measured else None
    if guard is not None:
        measured = guard.plan_loss if guard.kept == "plan" else guard.uniform_loss
    options = _uniform(profile, arrays, plan)
    if guard is not None and guard.option not in options:
        # The rival has 8 bits in the first and the last layer, and stands for the option without these.
        main = guard.option.split(",")[0]
        with_ends = _uniform(profile, arrays, plan, ends=True)
        if main in with_ends:
            options[guard.option] = with_ends[main]
            options.pop(main, None)
    uniform = [
        ParetoPoint(
            option,
            size_bits,
            predicted,
            guard.uniform_loss if guard is not None and guard.option == option else None,
        )
        for option, (size_bits, predicted) in options.items()
    ]
    return ParetoPoint("plan", weight_bits, additive_loss(plan), measured), uniform


def _uniform(
    profile: Profile, arrays: ProfileArrays | None, plan: Plan, *, ends: bool = False
) -> dict[str, tuple[int, float]]:
    """Bits and predicted loss of the uniform options within the plan's budgets, but for those of the size."""
    options = uniform_options(profile, arrays, plan.unit, plan.constraints, ends=ends)
    others = tuple(text for text in plan.budgets if parse_budget(text).quantity != SIZE)
    if not others:
        return options
    within = uniform_within(profile, plan, others, ends=ends)
    return {option: found for option, found in options.items() if option in within}
