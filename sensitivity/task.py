"""One planning problem: a profile, budgets and constraints, and the way from a choice to its document."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from ..allocator import (
    COUNTED,
    Budget,
    Certificate,
    CodeSavings,
    Complexity,
    Constraints,
    CostTable,
    LayerPlan,
    MultiProblem,
    MultiSolution,
    Plan,
    Status,
    assignment_digest,
    excesses,
    further_costs,
    layer_activations,
    layer_widths,
    match_layers,
    parse_unit,
    solve_multi,
)
from ..errors import InputError
from ..quantizer import parse_option, stored_bits
from .facts import facts_of_profile, resolve
from .feasible import Ledger, limits_of, read_budgets, tables_for, under_limits
from .measure import tool_versions
from .pooled import pooled_scores
from .problems import Posed, layer_scores, pose
from .profile import Profile, ProfileArrays

__all__ = [
    "Task",
    "activation_loss",
    "build_plan",
    "ledger_of_profile",
    "pose_task",
    "resolved_for",
    "tables_at",
    "task_of",
]


@dataclass(frozen=True, eq=False)
class Task:
    """What is to be solved, and what the plan document says of it.

    Attributes
    ----------
    profile : Profile
    arrays : ProfileArrays or None
    unit : str
        See `parse_unit`.
    budgets : tuple of Budget
    constraints : Constraints
        With the tie ``auto`` written out.
    posed : Posed
        The units, and which strips they hold.
    problem : MultiProblem
        The units' additive losses and costs under the budgets.
    savings : CodeSavings
        What layers save of the budgets where they come out with one option.
    widths : tuple of str
        Option of every value that is stored in low bits, which this task does not choose.
    plain : frozenset of int
        Layers that are to have one option here.
    """

    profile: Profile
    arrays: ProfileArrays | None
    unit: str
    budgets: tuple[Budget, ...]
    constraints: Constraints
    posed: Posed
    problem: MultiProblem
    savings: CodeSavings
    widths: tuple[str, ...] = ()
    plain: frozenset[int] = frozenset()

    def with_plain(self, layers: frozenset[int]) -> Task:
        """The task in which these layers, and no others, are to have one option."""
        return pose_task(
            self.profile, self.arrays, [str(budget) for budget in self.budgets], self.unit,
            constraints=self.constraints, tables=self.posed.tables, widths=self.widths, plain=layers,
        )  # fmt: skip

    def plan(self, solution: MultiSolution) -> Plan:
        """The document of a solution."""
        # A price per whole number of a table becomes one per unit of its quantity.
        scales = self.problem.scales or (1,) * len(self.problem.budgets)
        prices = {
            name: solution.certificate.shadow_prices[name] * scale
            for name, scale in zip(self.problem.budget_names, scales, strict=True)
        }
        certificate = solution.certificate.model_copy(update={"shadow_prices": prices})
        plan = build_plan(
            self.profile, self.arrays, self.unit, self.posed.assigned(solution.choice),
            None if parse_unit(self.unit).kind == "layer" else self.posed.whole,
            budgets=tuple(str(budget) for budget in self.budgets),
            constraints=None if self.constraints == Constraints() else self.constraints,
            tables=self.posed.tables,
            certificate=certificate,
            widths=self.widths,
        )  # fmt: skip
        for excess in excesses(plan):
            raise RuntimeError(
                f"a plan left the solver over its budget {excess.budget} by {excess.taken - excess.limit}"
            )
        return plan

    def plan_of(self, choice: NDArray[np.intp], *, time_limit_s: float | None = None) -> Plan:
        """The document of a choice that was found by measuring, with the bound of the additive objective.

        Parameters
        ----------
        time_limit_s : float, optional
            Of the search behind that bound.
        """
        solved = solve_multi(self.problem, time_limit_s=time_limit_s).certificate
        losses, prices = self.problem.loss_of(choice), np.array(list(solved.shadow_prices.values()))
        # Other plans may have other layers of one option.
        free = self.with_plain(frozenset()) if self.plain else self
        bound = min(solved.bound, free.savings.best_bound(free.problem, prices)[1])
        gap = max(float(losses.sum()) - bound, 0.0)
        certificate = Certificate.from_gap(
            losses, gap, Status.MEASURED, "measured moves", solved.shadow_prices
        )
        costs = tuple(self.problem.costs_of(choice).tolist())
        return self.plan(MultiSolution(choice, certificate.objective, costs, certificate))

    def choice_of(self, plan: Plan) -> NDArray[np.intp]:
        """Option index of every unit in a plan of these units, or of whole layers."""
        columns = {option: column for column, option in enumerate(self.profile.options)}
        strips = np.empty(len(self.posed.member), np.intp)
        for layer, begin, end in zip(plan.layers, self.posed.starts, self.posed.starts[1:], strict=False):
            options = layer.strip_options() if layer.option is None else (layer.option,)
            strips[begin:end] = [columns[option] for option in options]
        return self.choice_of_strips(strips)

    def choice_of_strips(self, strips: NDArray[np.intp]) -> NDArray[np.intp]:
        """Option index of every unit from that of every strip of every layer."""
        choice = np.zeros(self.problem.units, np.intp)
        choice[self.posed.member] = strips
        return choice

    def choice_within(self, plan: Plan, *, time_limit_s: float | None = None) -> NDArray[np.intp]:
        """The same, some units with cheaper options where what finer units store exceeds a budget.

        Raises
        ------
        InfeasibleError
            No cheaper options of these units are within all budgets.
        """
        choice, problem = self.choice_of(plan), self.problem
        if (problem.costs_of(choice) <= np.array(problem.budgets)).all():
            return choice
        own = np.take_along_axis(problem.costs, choice[None, :, None], 2)
        allowed = np.logical_and.reduce(problem.costs <= own)
        if problem.allowed is not None:
            allowed &= problem.allowed
        return solve_multi(replace(problem, allowed=allowed), time_limit_s=time_limit_s).choice


def resolved_for(profile: Profile, constraints: Constraints | None) -> Constraints:
    """Constraints as a plan of the profile states them: ``auto`` ties by name, exclusions as measured.

    Raises
    ------
    InputError
        A layer is excluded that the profile has scores of, or ``auto`` finds nothing to tie.
    """
    _check_excluded(profile, constraints or Constraints())
    resolved = resolve(constraints, facts_of_profile(profile))
    return resolved.model_copy(update={"exclude": profile.excluded})


def pose_task(
    profile: Profile,
    arrays: ProfileArrays | None,
    budgets: str | Sequence[str],
    unit: str,
    *,
    constraints: Constraints | None = None,
    tables: Sequence[CostTable] = (),
    widths: tuple[str, ...] = (),
    plain: frozenset[int] = frozenset(),
) -> Task:
    """Read and check what is to be solved; parameters and errors as `solve_plan`.

    Parameters
    ----------
    widths : tuple of str
        Option of every value of the profile, where these have options.
    plain : frozenset of int
        Layers that are to have one option, see `pose`.
    """
    read, resolved = read_budgets(budgets), resolved_for(profile, constraints)
    given = tables_at(profile, read, tables, widths)
    found = profile.activations
    reading = layer_widths(found.planned(widths)) if found is not None and widths else {}
    at_widths = [table.at(reading) for table in given]
    posed = pose(profile, arrays, unit, constraints=resolved, tables=at_widths, plain=plain)
    # Pairs stay in the document, where a person may choose other activations.
    posed = replace(
        posed,
        tables=tuple(
            whole if whole.names_pairs else table for whole, table in zip(given, posed.tables, strict=True)
        ),
    )
    limits = limits_of(read, posed, unit, ledger_of_profile(profile))
    savings = posed.savings([limit.cost for limit in limits])
    problem = under_limits(posed, limits)
    return Task(profile, arrays, unit, tuple(read), resolved, posed, problem, savings, widths, plain)


def tables_at(
    profile: Profile, budgets: Sequence[Budget], tables: Sequence[CostTable], widths: Sequence[str]
) -> tuple[CostTable, ...]:
    """The tables given, and what is counted at these bits of activations, whatever was counted before."""
    found, entering = profile.activations, None
    if found is not None and widths:
        tables = [table for table in tables if table.name not in COUNTED]
        entering = layer_activations(found.planned(widths))
    facts, floats = facts_of_profile(profile), profile.excluded_macs
    return tables_for(budgets, tables, facts, profile.options, floats, entering)


def activation_loss(plan: Plan) -> float:
    """What the scores predict for the plan's activations."""
    return math.fsum(value.chosen.predicted_loss for value in plan.activations)


def predicted_loss(plan: Plan) -> float:
    """What the scores predict for a plan that was made from them."""
    assert plan.predicted_loss is not None
    return plan.predicted_loss


def additive_loss(plan: Plan) -> float | None:
    """What the scores of layers and of activations, each alone, add up to; None without any."""
    losses = [layer.predicted_loss for layer in plan.layers if layer.predicted_loss is not None]
    return math.fsum(losses) + activation_loss(plan) if losses else None


def task_of(profile: Profile, arrays: ProfileArrays | None, plan: Plan) -> Task:
    """The task that a plan solves."""
    tables = tuple(CostTable(name, costs) for name, costs in (plan.tables or {}).items())
    return pose_task(
        profile, arrays, plan.budgets, plan.unit, constraints=plan.constraints, tables=tables,
        widths=tuple(value.option for value in plan.activations),
    )  # fmt: skip


def ledger_of_profile(profile: Profile) -> Ledger:
    """What budgets of a profile are counted against."""
    return Ledger(profile.weight_count, profile.fixed_bits, profile.float_bits)


def _check_excluded(profile: Profile, constraints: Constraints) -> None:
    """Refuse to exclude what was measured; what was left out of the profile stays so."""
    for pattern in constraints.exclude:
        if pattern in profile.excluded or any(fnmatchcase(name, pattern) for name in profile.excluded):
            continue
        rows = match_layers(pattern, [layer.name for layer in profile.layers], f"exclude {pattern}")
        raise InputError(
            f"exclude {pattern}: the profile has scores of layer '{profile.layers[rows[0]].name}'; what "
            f"stays float is left out before measuring, so profile again with --exclude '{pattern}'"
        )


def build_plan(
    profile: Profile,
    arrays: ProfileArrays | None,
    unit: str,
    assigned: Sequence[Sequence[str]],
    whole: Sequence[bool] | None,
    *,
    budgets: tuple[str, ...],
    constraints: Constraints | None,
    tables: Sequence[CostTable],
    certificate: Certificate | None,
    widths: Sequence[str] = (),
) -> Plan:
    """The document of an assignment; `whole` says which layers are one unit, None: all are.

    Parameters
    ----------
    widths : sequence of str
        Option of every value of the profile, where these have options.
    """
    predicted = _predicted_losses(profile, arrays, assigned, whole)
    of_weights = sum(predicted)
    if certificate is not None and certificate.objective_form != "additive":
        of_weights = certificate.objective
    parsed = parse_unit(unit)
    layers = []
    for layer, options, loss in zip(profile.layers, assigned, predicted, strict=True):
        cut = layer.layer_cut()
        size_bits = stored_bits(
            [parse_option(text) for text in options],
            cut.row_weights,
            len(profile.options),
            tile=parsed.tile,
            rows_per_strip=cut.rows_per_strip,
        )
        layers.append(
            LayerPlan.from_strips(
                layer.name,
                layer.shape,
                options,
                cut=layer.cut,
                size_bits=size_bits,
                predicted_loss=loss,
                mean_bits=size_bits / (layer.channels * layer.fan_in),
            )
        )
    weights = sum(layer.size_bits for layer in layers)
    found = profile.activations
    activations = () if found is None else found.planned(widths)
    plan = Plan(
        unit=str(parsed),
        budgets=budgets,
        constraints=constraints,
        tables={table.name: table.as_document() for table in tables} or None,
        complexity=Complexity(
            size_bits=weights + profile.fixed_bits,
            average_bits=weights / profile.weight_count,
            fixed_bits=profile.fixed_bits,
            float_bits=profile.float_bits,
            weight_count=profile.weight_count,
        ),
        certificate=certificate,
        predicted_loss=of_weights + sum(value.chosen.predicted_loss for value in activations),
        profile=profile.fingerprint.text(),
        options=profile.options,
        quantizer=profile.quantizer,
        assignment=assignment_digest(layers, activations),
        versions=tool_versions(),
        layers=tuple(layers),
        activations=activations,
        live=() if found is None else found.live,
    )
    if certificate is not None:
        plan = plan.model_copy(update={"certificate": certificate.of_problem(plan.problem())})
    costs = {name: float(cost) for name, cost in further_costs(plan).items()}
    return plan.model_copy(update={"complexity": plan.complexity.model_copy(update={"costs": costs})})


def _predicted_losses(
    profile: Profile,
    arrays: ProfileArrays | None,
    assigned: Sequence[Sequence[str]],
    whole: Sequence[bool] | None,
) -> list[float]:
    """Loss that the scores predict for every layer: its own score, or the sum of its strips' scores."""
    scores, start, losses = layer_scores(profile), 0, []
    strips = None if arrays is None or whole is None or all(whole) else pooled_scores(profile, arrays)
    for row, options in enumerate(assigned):
        columns = [profile.options.index(option) for option in options]
        if strips is None or whole is None or whole[row]:
            losses.append(float(scores[row, columns[0]]))
        else:
            losses.append(float(strips[range(start, start + len(options)), columns].sum()))
        start += len(options)
    return losses
