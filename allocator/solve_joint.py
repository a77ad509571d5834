"""The front door for losses with interactions: a choice within the budgets, and what bounds it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .joint import JointProblem, descend
from .joint_bound import joint_bound
from .solution import Certificate, MultiSolution, Status
from .solve_multi import solve_multi
from .swaps import swap_down

__all__ = ["solve_joint"]

SOLVER = "local search and convex relaxation"


def solve_joint(joint: JointProblem) -> MultiSolution:
    """Least joint loss within the budgets, by local search from the additive optimum.

    The additive optimum leaves the products between units out of the square. From there many units move at
    once (`descend`), then single units and pairs (`swap_down`). The bound is that of the convex relaxation,
    see `joint_bound`.

    Parameters
    ----------
    joint : JointProblem
        The problem.

    Returns
    -------
    MultiSolution
        Never worse in joint loss than the additive optimum; its certificate has `objective_form` "joint".

    Raises
    ------
    InfeasibleError
        No choice meets the budgets.
    """
    alone = joint.squares.astype(np.float64) / 2 + joint.gradient(joint.offset)
    additive = solve_multi(replace(joint.linear, loss=alone))
    prices = additive.certificate.shadow_prices
    choice = descend(joint, additive.choice)
    choice = swap_down(joint, choice, np.array(list(prices.values())))
    return _certified(joint, choice, prices)


def _certified(joint: JointProblem, choice: NDArray[np.intp], prices: dict[str, float]) -> MultiSolution:
    objective = joint.loss_of(choice)
    bound = min(joint_bound(joint, choice), objective)
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
