"""The front door for several budgets at once: a choice within all of them, with its certificate."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import overload

import numpy as np
from numpy.typing import NDArray

from ..errors import InfeasibleError
from .branch import Search, branch
from .conflict import check_budgets, check_together, refuse
from .dual import choose_at, cut_to_prices
from .multi import MultiProblem, cost_ranges, tightened
from .repair import repaired, rounded, spend, swapped
from .residue import Relaxation, Residue, excess_of, residue_at, sift
from .solution import Certificate, MultiSolution, Status
from .solve import deadline_after, solve

__all__ = ["good_choice", "solve_multi"]

SOLVER = "dual prices and branch and bound"
FEW_UNITS = 2000
MOST_UNDECIDED, MOST_UNDECIDED_OF_MANY = 4000, 500
"""Undecided options up to which a proof is tried, for up to `FEW_UNITS` units and for more of them; where
more are left, the relaxation's bound must do."""
CLOSEST, CLOSEST_NODES = 300, 200
"""Options, and nodes of the search tree, among which a better choice is looked for at first."""
MOST_UNGUIDED = 50_000
"""Units times options up to which a whole choice is searched for when rounding finds none."""


def solve_multi(problem: MultiProblem, *, time_limit_s: float | None = None) -> MultiSolution:
    """Choose one option for every unit: least total loss within every budget.

    The Lagrangian dual gives the optimum of the linear relaxation as a bound and a price for each budget; its
    mix of options is rounded, brought within the budgets and improved; what the prices leave undecided is
    searched completely where it is small enough. A single budget goes to `solve`.

    Parameters
    ----------
    problem : MultiProblem
        Losses, costs and budgets.
    time_limit_s : float, optional
        Seconds after which the search stops with what it has. The relaxation itself is not interrupted.

    Returns
    -------
    MultiSolution
        Never over any budget. Its certificate names a shadow price for each budget.

    Raises
    ------
    InfeasibleError
        A budget below the least total cost, or budgets that clash; names them and how far they are off.
    InputError
        A time limit that is not above 0.
    """
    deadline = deadline_after(time_limit_s)
    if len(problem.budgets) == 1:
        check_budgets(problem)
        return _solve_single(problem, time_limit_s)
    clash = check_together(problem)
    tight = tightened(problem)
    relaxation = sift(tight, cut_to_prices(tight))
    known = _known_choice(tight, relaxation, clash.choice)
    found = _search(tight, relaxation, known, deadline)
    if found.choice is None:
        raise refuse(problem) if found.status is Status.OPTIMAL else _not_found(problem)
    choice, costs = found.choice, problem.costs_of(found.choice)
    if not problem.within(choice):
        raise RuntimeError(f"a choice of costs {costs} left the solver at budgets of {problem.budgets}")
    excess, rounding = excess_of(tight, relaxation.priced, choice)
    gap = max(excess - found.least_excess, 0.0) + rounding
    # Of a budget that nothing exceeds any price is right where all costs are the same.
    prices = {
        name: 0.0 if budget >= span.greatest else price
        for name, budget, span, price in zip(
            problem.budget_names,
            problem.budgets,
            cost_ranges(problem),
            relaxation.priced.prices.tolist(),
            strict=True,
        )
    }
    certificate = Certificate.from_gap(problem.loss_of(choice), gap, found.status, SOLVER, prices)
    return MultiSolution(choice, certificate.objective, tuple(costs.tolist()), certificate)


def good_choice(
    problem: MultiProblem, known: NDArray[np.intp], prices: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """A good choice within several budgets, without a proof, and the best prices.

    The relaxation's mix of options is rounded, brought within the budgets, and spends what is left of them,
    as `greedy_fill` does under one budget. No tree is searched, so it takes a few linear programmes.

    Parameters
    ----------
    problem : MultiProblem
        Losses, costs and budgets.
    known : int array (units,)
        A choice within the budgets, from which they are spent where rounding finds none.
    prices : float64 array (budgets,), optional
        Near the best ones, such as the best for similar losses; default: found by cutting planes.
    """
    tight = tightened(problem)
    relaxation = sift(tight, cut_to_prices(tight) if prices is None else choose_at(tight, prices))
    choice = repaired(tight, relaxation, rounded(relaxation))
    filled = spend(tight, relaxation.priced, known if choice is None else choice)
    return filled, relaxation.priced.prices


def _solve_single(problem: MultiProblem, time_limit_s: float | None) -> MultiSolution:
    solution = solve(problem.single(0), time_limit_s=time_limit_s)
    (price,) = solution.certificate.shadow_prices.values()
    certificate = solution.certificate.model_copy(update={"shadow_prices": {problem.budget_names[0]: price}})
    return MultiSolution(solution.choice, solution.loss, (solution.cost,), certificate)


def _known_choice(
    problem: MultiProblem, relaxation: Relaxation, met: NDArray[np.intp] | None
) -> NDArray[np.intp] | None:
    """The best choice within the budgets that rounding and local search find; None where they find none."""
    known = repaired(problem, relaxation, rounded(relaxation))
    if known is None:
        known = met
    if known is None or not problem.within(known):
        return None
    known = spend(problem, relaxation.priced, known)
    return swapped(problem, relaxation.residue, known)


def _search(
    problem: MultiProblem,
    relaxation: Relaxation,
    known: NDArray[np.intp] | None,
    deadline: float | None,
) -> Search:
    """Prove the known choice the best or find a better one, where what is undecided is little enough."""
    priced = relaxation.priced
    if known is None:
        known = _among_closest(problem, relaxation, None, deadline)
    if known is None:
        if problem.loss.size > MOST_UNGUIDED:
            return Search(None, 0.0, Status.SEARCH_LIMIT)
        return branch(problem, residue_at(problem, priced), None, deadline=deadline)
    undecided, excess, rounding = _undecided(problem, relaxation, known)
    if len(undecided.unit) > CLOSEST:
        known = _among_closest(problem, relaxation, known, deadline)
        undecided, excess, rounding = _undecided(problem, relaxation, known)
    if excess <= rounding:
        return Search(known, -rounding, Status.OPTIMAL)
    most = MOST_UNDECIDED if problem.units <= FEW_UNITS else MOST_UNDECIDED_OF_MANY
    if len(undecided.unit) > most:
        late = deadline is not None and time.monotonic() >= deadline
        return Search(known, -rounding, Status.TIME_LIMIT if late else Status.SEARCH_LIMIT)
    found = branch(problem, undecided, known, deadline=deadline)
    return replace(found, least_excess=found.least_excess - rounding)


def _undecided(
    problem: MultiProblem, relaxation: Relaxation, known: NDArray[np.intp]
) -> tuple[Residue, float, float]:
    """Options that a better choice than the known one may have; its excess, and what rounding allows."""
    excess, rounding = excess_of(problem, relaxation.priced, known)
    residue = residue_at(problem, relaxation.priced, below=excess)
    return residue, excess, rounding + residue.rounding


@overload
def _among_closest(
    problem: MultiProblem, relaxation: Relaxation, known: NDArray[np.intp], deadline: float | None
) -> NDArray[np.intp]: ...


@overload
def _among_closest(
    problem: MultiProblem, relaxation: Relaxation, known: None, deadline: float | None
) -> NDArray[np.intp] | None: ...


def _among_closest(
    problem: MultiProblem,
    relaxation: Relaxation,
    known: NDArray[np.intp] | None,
    deadline: float | None,
) -> NDArray[np.intp] | None:
    """A better choice among the options that are closest to their base: rarely the best, and soon found."""
    closest = residue_at(problem, relaxation.priced, closest=CLOSEST)
    return branch(problem, closest, known, deadline=deadline, most_nodes=CLOSEST_NODES).choice


def _not_found(problem: MultiProblem) -> InfeasibleError:
    budgets = zip(problem.budget_names, problem.budgets, strict=True)
    return InfeasibleError(
        "a mix of options would fit the budgets, but no choice of whole options was found: "
        f"{', '.join(f'{name} {budget:,}' for name, budget in budgets)} leave next to no room together; "
        "raise one of them a little"
    )
