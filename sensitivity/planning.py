"""From a profile and budgets to a plan."""

from __future__ import annotations

from collections.abc import Sequence

from ..allocator import (
    Constraints,
    CostTable,
    Plan,
    Status,
    average_budget,
    excesses,
    parse_unit,
)
from .block_choice import solve_blocks
from .coded import solve_coded, solve_coded_joint
from .facts import facts_of_profile
from .feasible import read_budgets, tables_for
from .joint import Objective
from .memory import refuse_memory_of_floats
from .profile import Profile, ProfileArrays
from .task import (
    activation_loss,
    build_plan,
    ledger_of_profile,
    pose_task,
    predicted_loss,
    resolved_for,
    tables_at,
)
from .uniform import uniform_choices, uniform_widths
from .widths import Together, counts_widths, least_loss_widths, profile_site_allowed, solve_together

__all__ = [
    "best_uniform_plan",
    "budget_bits",
    "certifies_activations",
    "solve_plan",
    "uniform_plans",
    "uniform_within",
]


def budget_bits(profile: Profile, budget: str) -> int:
    """Bits that a budget leaves to the quantized weights, whatever the options can reach.

    Raises
    ------
    InputError
        Not a budget of the size.
    InfeasibleError
        What stays float takes all of it.
    """
    return read_budgets(budget)[0].bits(*ledger_of_profile(profile))


def solve_plan(
    profile: Profile,
    arrays: ProfileArrays | None,
    budgets: str | Sequence[str],
    unit: str,
    *,
    objective: Objective | None = None,
    constraints: Constraints | None = None,
    tables: Sequence[CostTable] = (),
    time_limit_s: float | None = None,
) -> Plan:
    """The plan of least predicted loss within all budgets, with its certificate.

    Parameters
    ----------
    arrays : ProfileArrays or None
        Needed for every unit but the layer, and for the joint objective.
    budgets : str or sequence of str
        One or several, see `parse_budget`; each is kept.
    unit : str
        See `parse_unit`.
    objective : Objective, optional
        Whether losses add up, or interact as the projections say, see `joint_problem`, or do so within the
        blocks of the network, see `solve_blocks`. Default: joint where options are chosen below the layer
        and the profile has the projections, else additive; measured on held-out images, the joint objective
        loses 22%, 6% and 0% less there on three networks; per layer it does not help.
    constraints : Constraints, optional
        Tied, pinned and excluded layers, and options of their own.
    tables : sequence of CostTable
        Further quantities that budgets may limit; bit operations need none.
    time_limit_s : float, optional
        Seconds after which a search stops with what it has. Relaxations are not interrupted.

    Raises
    ------
    InputError
        Not a budget, a unit or objective that the profile has no scores for, constraints that cannot be, or
        a table without the costs that are needed.
    InfeasibleError
        No choice meets the budgets; names the least and the greatest complexity, and the budgets that clash.

    Notes
    -----
    Where activations have options too and no budget counts their bits, every value takes the option of least
    loss. Else values and whole layers are chosen together, see `solve_together`; a choice below the layer
    then takes the values' bits from there, and its certificate is about the weights at these bits.
    """
    widths: tuple[str, ...] = ()
    if profile.activations is None:
        refuse_memory_of_floats(read_budgets(budgets))
        profile_site_allowed(profile, constraints or Constraints())
    else:
        together, widths = _widths(profile, budgets, constraints, tables, time_limit_s)
        if together is not None and unit == "layer" and objective in (None, Objective.ADDITIVE):
            return _whole_plan(profile, budgets, constraints, tables, together)
    task = pose_task(profile, arrays, budgets, unit, constraints=constraints, tables=tables, widths=widths)
    if objective is None:
        finer = parse_unit(unit).kind != "layer" and arrays is not None and arrays.factors is not None
        objective = Objective.JOINT if finer else Objective.ADDITIVE
    if objective is Objective.BLOCK:
        return task.plan(solve_blocks(task, time_limit_s))
    joint = objective is Objective.JOINT
    at, solution = solve_coded_joint(task, time_limit_s) if joint else solve_coded(task, time_limit_s)
    return at.plan(solution)


def _widths(
    profile: Profile,
    budgets: str | Sequence[str],
    constraints: Constraints | None,
    tables: Sequence[CostTable],
    time_limit_s: float | None,
) -> tuple[Together | None, tuple[str, ...]]:
    """Option of every value, and what it was chosen with where budgets count it."""
    read, resolved = read_budgets(budgets), resolved_for(profile, constraints)
    assert profile.activations is not None
    if not counts_widths(read, tables):
        return None, least_loss_widths(profile.activations, profile_site_allowed(profile, resolved))
    # Whether every quantity has costs is found out here.
    tables_for(read, tables, facts_of_profile(profile), profile.options, profile.excluded_macs)
    ledger = ledger_of_profile(profile)
    together = solve_together(profile, read, ledger, resolved, tables, time_limit_s=time_limit_s)
    return together, together.widths


def _whole_plan(
    profile: Profile,
    budgets: str | Sequence[str],
    constraints: Constraints | None,
    tables: Sequence[CostTable],
    together: Together,
) -> Plan:
    read, resolved = read_budgets(budgets), resolved_for(profile, constraints)
    plan = build_plan(
        profile, None, "layer",
        [[option] * layer.strips for option, layer in zip(together.layers, profile.layers, strict=True)],
        None,
        budgets=tuple(map(str, read)),
        constraints=None if resolved == Constraints() else resolved,
        tables=tables_at(profile, read, tables, together.widths),
        certificate=together.certificate,
        widths=together.widths,
    )  # fmt: skip
    for excess in excesses(plan):
        raise RuntimeError(f"a plan left the solver over its budget {excess.budget}")
    return plan


def certifies_activations(plan: Plan) -> bool:
    """Whether the certificate of a plan is about weights and activations together, and not weights alone."""
    return (
        bool(plan.activations)
        and plan.unit == "layer"
        and counts_widths(read_budgets(plan.budgets), _tables_of(plan))
        and plan.certificate is not None
        and plan.certificate.objective_form == "additive"
    )


def _tables_of(plan: Plan) -> tuple[CostTable, ...]:
    return tuple(CostTable(name, costs) for name, costs in (plan.tables or {}).items())


def best_uniform_plan(profile: Profile, plan: Plan) -> Plan | None:
    """The plan that gives every layer one option, that of least predicted loss within the same budgets.

    Plans with 8 bits in the first and the last layer are among them, as these are what networks in one option
    are most often shipped as. Layers that the plan's constraints keep from the option take the nearest that
    they may have, see `uniform_choices`. None where no option fits.
    """
    fitting = [
        candidate
        for ends in (False, True)
        for candidate in uniform_within(profile, plan, plan.budgets, ends=ends).values()
    ]
    if not fitting:
        return None
    best = min(fitting, key=predicted_loss)
    if plan.certificate is None or plan.unit != "layer" or plan.certificate.objective_form != "additive":
        # What bounds another loss, or choices of other units, says nothing about this one.
        return best
    objective, bound = predicted_loss(best), plan.certificate.bound
    if not certifies_activations(plan):
        objective -= activation_loss(best)
    gap = max(0.0, objective - bound)
    certificate = plan.certificate.model_copy(
        update={
            "objective": objective,
            "gap": gap,
            "relative_gap": gap / max(abs(objective), abs(bound)) if gap else 0.0,
            "status": Status.MEASURED,
            "solver": "measurement",
        }
    )
    # Its bit operations are counted at other bits of activations.
    return best.model_copy(update={"certificate": certificate.of_problem(best.problem())})


def uniform_within(
    profile: Profile, plan: Plan, budgets: tuple[str, ...], *, ends: bool = False
) -> dict[str, Plan]:
    """Those of `uniform_plans`, under the plan's constraints and tables, that keep all of these budgets."""
    candidates = uniform_plans(profile, plan.constraints, tables=_tables_of(plan), budgets=budgets, ends=ends)
    return {name: candidate for name, candidate in candidates.items() if not excesses(candidate)}


def uniform_plans(
    profile: Profile,
    constraints: Constraints | None = None,
    *,
    tables: Sequence[CostTable] = (),
    budgets: tuple[str, ...] | None = None,
    ends: bool = False,
) -> dict[str, Plan]:
    """For every option that all layers can take, the plan in which they do, as far as constraints allow.

    Where values have options too, for every option of theirs with it, named such as ``w4a8``.

    Parameters
    ----------
    budgets : tuple of str, optional
        What the plans shall state, whether they are within or not; default: their own average bits.
    ends : bool
        The first and the last layer, and what they read, have 8 bits as far as they may.
    """
    plans = {}
    for option, taken in uniform_choices(profile, constraints, ends=ends).items():
        assigned = [
            [profile.options[column]] * layer.strips
            for column, layer in zip(taken, profile.layers, strict=True)
        ]
        for width, widths in uniform_widths(profile, constraints, ends=ends).items():
            limits = read_budgets(budgets) if budgets else ()
            plan = build_plan(
                profile, None, "layer", assigned, None,
                budgets=budgets or ("100%",), constraints=constraints,
                tables=tables_at(profile, limits, tables, widths), certificate=None, widths=widths,
            )  # fmt: skip
            if budgets is None:
                own = average_budget(plan.complexity.size_bits - profile.fixed_bits, profile.weight_count)
                plan = plan.model_copy(update={"budgets": (own,)})
            plans[f"{option}{width}"] = plan
    return plans
