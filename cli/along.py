"""Measure plans along the frontier, and every uniform option beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from ..allocator import (
    BudgetKind,
    Constraints,
    DropKind,
    FrontierCurve,
    FrontierPoint,
    Measured,
    MeasuredFrontier,
    Plan,
    average_budget,
    lower_frontier,
    pareto_curve,
    parse_budget,
)
from ..errors import InfeasibleError, InputError, NotFiniteError
from ..network import float_logits
from ..reconstruct import Finalized, can_measure, measure_finalized
from ..sensitivity import (
    Profile,
    ProfileArrays,
    activation_loss,
    additive_loss,
    pose,
    resolved_for,
    solve_plan,
    tool_versions,
    uniform_plans,
)
from .console import Reporter
from .inputs import Inputs
from .rivals import Rival

__all__ = ["Stretch", "measure_frontier"]

POINTS_OF_CURVE = 100
"""Of the predicted curve in the document: closer than a pixel, small in the file."""


@dataclass(frozen=True)
class Stretch:
    """Which budgets are measured: evenly spaced average bits between two ends.

    Attributes
    ----------
    points : int
    start, end : str or None
        Budgets; default: the least and the greatest that the options reach.
    """

    points: int
    start: str | None = None
    end: str | None = None

    def check(self) -> None:
        """See that the ends are ends.

        Raises
        ------
        InputError
            An end is not an average of bits, or they are the wrong way round.
        """
        first, last = _end(self.start, "--from"), _end(self.end, "--to")
        if first is not None and last is not None and (last < first or (last == first and self.points > 1)):
            raise InputError(
                f"--to {self.end} is not above --from {self.start}: the frontier goes up in size"
            )

    def budgets(self, least: int, greatest: int, weight_count: int) -> list[str]:
        """The budgets, rising, each once; those below the least that is reached become the least.

        Parameters
        ----------
        least, greatest : int
            Bits that the options reach.

        Raises
        ------
        InputError
            See `check`.
        InfeasibleError
            The end is below what the options reach.
        """
        self.check()
        first, last = _end(self.start, "--from"), _end(self.end, "--to")
        low = least if first is None else max(least, int(first * weight_count))
        high = greatest if last is None else int(last * weight_count)
        if high < low and last is not None and high < least:
            raise InfeasibleError(
                f"--to {self.end} is below what the options can reach, {least / weight_count:.3f}b; raise it"
            )
        steps = max(self.points - 1, 1)
        spread = (low + (max(high, low) - low) * index // steps for index in range(self.points))
        return list(dict.fromkeys(average_budget(bits, weight_count) for bits in spread))


def measure_frontier(
    profile: Profile,
    arrays: ProfileArrays | None,
    ways: Sequence[Rival],
    constraints: Constraints | None,
    stretch: Stretch,
    inputs: Inputs,
    finalize: Callable[[Plan], Finalized],
    reporter: Reporter,
) -> MeasuredFrontier:
    """Solve, finalize and measure plans along the frontier, and all uniform options.

    All are measured on the held-out data, or where there is none on the calibration data; those whose output
    is not finite are left out with a warning.

    Parameters
    ----------
    ways : sequence of (str, Objective or None)
        Units of choice, and what is minimised, that compete at every budget, see `rivals`: the plan of least
        measured loss is kept.

    Raises
    ------
    InputError, InfeasibleError
        See `Stretch.budgets`.
    NotFiniteError
        The output of no plan is finite.
    """
    data, rules = inputs.held_out or inputs.calibration, resolved_for(profile, constraints)
    posed = pose(profile, arrays, ways[0][0], constraints=rules)
    greatest = int(lower_frontier(posed.problem).cost[-1])
    budgets = stretch.budgets(posed.least_bits, greatest, profile.weight_count)
    reference = float_logits(inputs.network, data)
    drop = DropKind.ACCURACY if can_measure(DropKind.ACCURACY, data) else None

    failed: list[NotFiniteError] = []

    def measured(name: str, plan: Plan) -> list[FrontierPoint]:
        try:
            quality = measure_finalized(inputs.network, finalize(plan), data, reference, drop=drop)
        except NotFiniteError as error:
            failed.append(error)
            reporter.warn(f"{name} per {plan.unit} is left out: {error}")
            return []
        return [_point(name, plan, quality)]

    uniform = uniform_plans(profile, rules)
    total = len(budgets) + len(uniform)
    plans: list[FrontierPoint] = []
    others: list[FrontierPoint] = []
    with reporter.stage("frontier") as progress:
        for done, budget in enumerate(budgets, 1):
            rivals: list[FrontierPoint] = []
            for unit, objective in ways:
                plan = solve_plan(profile, arrays, [budget], unit, objective=objective, constraints=rules)
                rivals += measured(budget, plan)
                # The same for all, as no budget counts activations.
                besides = activation_loss(plan)
            if rivals:
                plans.append(min(rivals, key=lambda point: point.measured.loss))
            progress(done, total)
        if not plans:
            raise failed[0]
        for done, (option, plan) in enumerate(uniform.items(), len(budgets) + 1):
            others += measured(option, plan)
            progress(done, total)
    curve = pareto_curve(posed.problem, posed.savings([0]), points=POINTS_OF_CURVE, vertices=POINTS_OF_CURVE)
    return MeasuredFrontier(
        profile=profile.fingerprint.text(),
        options=profile.options,
        fixed_bits=profile.fixed_bits,
        float_bits=profile.float_bits,
        weight_count=profile.weight_count,
        curve=FrontierCurve.of(curve.raised(besides)),
        plans=tuple(sorted(plans, key=lambda point: point.weight_bits)),
        uniform=tuple(sorted(others, key=lambda point: point.weight_bits)),
        versions=tool_versions(),
    )


def _point(name: str, plan: Plan, measured: Measured) -> FrontierPoint:
    predicted = additive_loss(plan)
    assert predicted is not None
    return FrontierPoint(
        name=name,
        unit=plan.unit,
        weight_bits=plan.complexity.size_bits - plan.complexity.fixed_bits,
        average_bits=plan.complexity.average_bits,
        predicted_loss=predicted,
        measured=measured,
    )


def _end(budget: str | None, option: str) -> Decimal | None:
    """An end of the stretch as an average of bits."""
    if budget is None:
        return None
    parsed = parse_budget(budget)
    if parsed.kind is not BudgetKind.AVERAGE_BITS:
        raise InputError(f"{option} {budget} is not an average of bits per weight; write 2.5b")
    return parsed.value
