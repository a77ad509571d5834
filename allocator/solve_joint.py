"""The front door for losses with interactions: a choice within the budgets, and what bounds it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .codes import CodeSavings
from .joint import JointProblem, descend
from .joint_bound import joint_bound
from .solution import Certificate, MultiSolution, Status
from .solve import deadline_after
from .solve_multi import solve_multi
from .swaps import swap_down

__all__ = ["certified_joint", "search_joint", "solve_joint"]

SOLVER = "local search and convex relaxation"


def solve_joint(joint: JointProblem, *, time_limit_s: float | None = None) -> MultiSolution:
    """Least joint loss within the budgets, by local search from the additive optimum.

    The additive optimum leaves the products between units out of the square. From there many units move at
    once (`descend`), then single units and pairs (`swap_down`). The bound is that of the convex relaxation,
    see `joint_bound`.

    Parameters
    ----------
    joint : JointProblem
        The problem.
    time_limit_s : float, optional
        Seconds after which the search stops with what it has. Relaxations are not interrupted.

    Returns
    -------
    MultiSolution
        Never worse in joint loss than the additive optimum; its certificate has `objective_form` "joint".

    Raises
    ------
    InfeasibleError
        No choice meets the budgets.
    InputError
        A time limit that is not above 0.
    """
    choice, prices = search_joint(joint, time_limit_s=time_limit_s)
    return certified_joint(joint, choice, prices, joint, choice)


def search_joint(
    joint: JointProblem, start: NDArray[np.intp] | None = None, *, time_limit_s: float | None = None
) -> tuple[NDArray[np.intp], dict[str, float]]:
    """A choice of little joint loss, and the prices of the additive optimum.

    Parameters
    ----------
    start : int array (units,), optional
        A choice within the budgets that is to be bettered; default: the additive optimum.
    time_limit_s : float, optional
        Seconds after which the search stops with what it has.
    """
    deadline = deadline_after(time_limit_s)
    alone = joint.squares.astype(np.float64) / 2 + joint.gradient(joint.offset)
    additive = solve_multi(replace(joint.linear, loss=alone), time_limit_s=time_limit_s)
    prices = additive.certificate.shadow_prices
    choice = descend(joint, additive.choice if start is None else start, deadline=deadline)
    return swap_down(joint, choice, np.array(list(prices.values())), deadline=deadline), prices


def certified_joint(
    joint: JointProblem,
    choice: NDArray[np.intp],
    prices: dict[str, float],
    apart: JointProblem,
    everywhere: NDArray[np.intp],
    savings: CodeSavings | None = None,
) -> MultiSolution:
    """A choice with what bounds it.

    Parameters
    ----------
    apart : JointProblem
        The problem that the bound is about: the same, or that of more units.
    everywhere : int array (units of `apart`,)
        The choice there.
    savings : CodeSavings, optional
        What groups of its units save where they have one option.
    """
    objective = joint.loss_of(choice)
    bound = min(joint_bound(apart, everywhere, savings), objective)
    gap = objective - bound
    certificate = Certificate(
        objective=objective,
        bound=bound,
        gap=gap,
        relative_gap=gap / (abs(objective) or gap) if gap else 0.0,
        status=Status.LOCAL_SEARCH,
        solver=SOLVER,
        shadow_prices=prices,
        objective_form="joint",
    )
    return MultiSolution(choice, objective, tuple(joint.linear.costs_of(choice).tolist()), certificate)
