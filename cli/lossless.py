"""A limit on the drop of quality in the place of a budget: which data judges, and the search over plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..allocator import (
    Constraints,
    DropKind,
    Plan,
    Tolerance,
    Trial,
    average_budget,
    lower_frontier,
    parse_tolerance,
)
from ..errors import InputError
from ..network import Data
from ..reconstruct import Candidate, Finalized, Way, can_measure, find_least
from ..sensitivity import (
    Objective,
    Profile,
    ProfileArrays,
    pose,
    predicted_loss,
    resolved_for,
    solve_plan,
    uniform_plans,
)
from .console import Reporter
from .inputs import Inputs
from .rivals import Rival

__all__ = ["ANY_SIZE", "least_plan", "searched_data", "tolerance_of", "trial_line"]

ANY_SIZE = "100000b"
"""A budget that every plan meets: with a limit on the drop, only the rules beside it can be impossible."""

LOSSLESS = "0.1%"
"""What ``--lossless`` stands for."""


def tolerance_of(lossless: bool, max_drop: str | None, budgets: Sequence[str]) -> Tolerance | None:
    """The limit on the drop, where one is given; None for a budget.

    Raises
    ------
    InputError
        Neither a limit nor a budget is given, or both, or what is given is no limit.
    """
    if lossless and max_drop is not None:
        raise InputError(f"--lossless is --max-drop {LOSSLESS}; give one of the two")
    limit = LOSSLESS if lossless else max_drop
    if limit is None:
        if not budgets:
            raise InputError(
                "say how much may be spent: --budget 4b, or 300KiB, or 25%; or how much may be lost: "
                "--lossless, or --max-drop 0.01kl"
            )
        return None
    if budgets:
        raise InputError(
            f"--budget {budgets[0]} limits what is spent, --max-drop {limit} limits what is lost, and the "
            "other is searched for; give one of the two"
        )
    return parse_tolerance(limit)


def searched_data(inputs: Inputs, tolerance: Tolerance) -> Data:
    """Where drops are measured: on held-out data that has what the limit needs, else on calibration data.

    Raises
    ------
    InputError
        Neither has it; names what can be given instead.
    """
    given = [data for data in (inputs.held_out, inputs.calibration) if data is not None]
    for data in given:
        if can_measure(tolerance.kind, data):
            return data
    needed = "labels" if tolerance.kind is DropKind.ACCURACY else "a label for every token"
    raise InputError(
        f"--max-drop {tolerance} needs {needed}, and none is in {' or '.join(data.name for data in given)}; "
        "give data with labels as --eval-data, or limit the KL, which needs none: --max-drop 0.01kl"
    )


def least_plan(
    profile: Profile,
    arrays: ProfileArrays | None,
    ways: Sequence[Rival],
    constraints: Constraints | None,
    inputs: Inputs,
    tolerance: Tolerance,
    finalize: Callable[[Plan], Finalized],
    reporter: Reporter,
    time_limit_s: float | None = None,
) -> Candidate:
    """The smallest plan whose measured drop is within the limit; every evaluation is told in a line.

    Parameters
    ----------
    ways : sequence of (str, Objective or None)
        Units of choice, and what is minimised, that compete; see `rivals`.

    Raises
    ------
    InfeasibleError
        No plan was measured within the limit.
    """
    data, rules = searched_data(inputs, tolerance), resolved_for(profile, constraints)

    def way(unit: str, objective: Objective | None) -> Way:
        def solved(bits: int) -> Plan:
            return solve_plan(
                profile,
                arrays,
                [average_budget(bits, profile.weight_count)],
                unit,
                objective=objective,
                constraints=rules,
                time_limit_s=time_limit_s,
            )

        posed = pose(profile, arrays, unit, constraints=rules)
        return Way(lower_frontier(posed.problem), posed.least_bits, solved)

    alike = uniform_plans(profile, rules).values()

    def uniform(bits: int) -> Plan | None:
        within = (plan for plan in alike if plan.complexity.size_bits - profile.fixed_bits <= bits)
        return min(within, key=predicted_loss, default=None)

    reporter.say(f"searching the least size with a drop of at most {tolerance} on {data.name}")
    return find_least(
        inputs.network,
        data,
        tolerance,
        [way(*rival) for rival in ways],
        finalize,
        uniform=uniform,
        on_trial=lambda trial: reporter.say(trial_line(trial)),
    )


def trial_line(trial: Trial) -> str:
    """One evaluation: bits, loss, drop with its interval, and whether it is within the limit."""
    verdict = "within" if trial.within else "outside"
    loss = "" if trial.drop.kind is DropKind.KL else f"KL {trial.loss:.3g}, "
    return f"  {trial.average_bits:.4f} bits, {trial.name}: {loss}{trial.drop.described()}, {verdict}"
