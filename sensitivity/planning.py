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
    solve_joint,
    solve_multi,
)
from .block_choice import solve_blocks
from .feasible import read_budgets
from .joint import Objective, joint_problem
from .profile import Profile, ProfileArrays
from .task import build_plan, ledger_of_profile, pose_task
from .uniform import uniform_choices

__all__ = ["best_uniform_plan", "budget_bits", "solve_plan", "uniform_plans"]


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
        blocks of the network, see `solve_blocks`. Default: joint where
        options are chosen below the layer and the profile has the projections, else additive; measured on
        held-out images, the joint objective wins there on a ResNet-20 and is within 4% on two other networks;
        per layer it does not help.
    constraints : Constraints, optional
        Tied, pinned and excluded layers, and options of their own.
    tables : sequence of CostTable
        Further quantities that budgets may limit; bit operations need none.

    Raises
    ------
    InputError
        Not a budget, a unit or objective that the profile has no scores for, constraints that cannot be, or
        a table without the costs that are needed.
    InfeasibleError
        No choice meets the budgets; names the least and the greatest complexity, and the budgets that clash.
    """
    task = pose_task(profile, arrays, budgets, unit, constraints=constraints, tables=tables)
    if objective is None:
        finer = parse_unit(unit).kind != "layer" and arrays is not None and arrays.factors is not None
        objective = Objective.JOINT if finer else Objective.ADDITIVE
    if objective is Objective.JOINT:
        return task.plan(solve_joint(joint_problem(task)))
    if objective is Objective.BLOCK:
        return task.plan(solve_blocks(task, time_limit_s))
    return task.plan(solve_multi(task.problem, time_limit_s=time_limit_s))


def best_uniform_plan(profile: Profile, plan: Plan) -> Plan | None:
    """The plan that gives every layer one option, that of least predicted loss within the same budgets.

    Layers that the plan's constraints keep from it take the nearest that they may have, see
    `uniform_choices`. None where no option fits.
    """
    tables = tuple(CostTable(name, costs) for name, costs in (plan.tables or {}).items())
    plans = uniform_plans(profile, plan.constraints, tables=tables, budgets=plan.budgets)
    fitting = [candidate for candidate in plans.values() if not excesses(candidate)]
    if not fitting:
        return None
    best = min(fitting, key=lambda candidate: candidate.predicted_loss)
    if plan.certificate is None or plan.unit != "layer":
        return best
    objective, bound = best.predicted_loss, plan.certificate.bound
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
    return best.model_copy(update={"certificate": certificate})


def uniform_plans(
    profile: Profile,
    constraints: Constraints | None = None,
    *,
    tables: Sequence[CostTable] = (),
    budgets: tuple[str, ...] | None = None,
) -> dict[str, Plan]:
    """For every option that all layers can take, the plan in which they do, as far as constraints allow.

    Parameters
    ----------
    budgets : tuple of str, optional
        What the plans shall state, whether they are within or not; default: their own average bits.
    """
    plans = {}
    for option, taken in uniform_choices(profile, constraints).items():
        assigned = [
            [profile.options[column]] * layer.strips
            for column, layer in zip(taken, profile.layers, strict=True)
        ]
        plan = build_plan(
            profile, None, "layer", assigned, None,
            budgets=budgets or ("100%",), constraints=constraints, tables=tables, certificate=None,
        )  # fmt: skip
        if budgets is None:
            own = average_budget(plan.complexity.size_bits - profile.fixed_bits, profile.weight_count)
            plan = plan.model_copy(update={"budgets": (own,)})
        plans[option] = plan
    return plans
