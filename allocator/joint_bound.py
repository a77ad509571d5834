"""What bounds the joint loss of every choice from below: its convex relaxation over mixes of options."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .dual import cut_to_prices
from .hull import lower_frontier
from .joint import JointProblem, half_square
from .multi import tightened
from .problem import cost_range

__all__ = ["joint_bound"]

PROGRAMME_ENTRIES = 500
"""Options over all units up to which the relaxation is solved as a quadratic programme."""
FRANK_WOLFE_STEPS = 60


def joint_bound(joint: JointProblem, choice: NDArray[np.intp]) -> float:
    """Lower bound of the joint loss of every choice within the budgets.

    The loss f is convex over mixes x of options, so for any x

        f(y) >= f(x) + min_y f'(x) (y - x),

    whose right side is a linear problem, bounded in turn by its own relaxation. Near the optimum of the
    relaxation this is tight. Up to 500 options over all units x is found by a quadratic programme
    (cvxpy), beyond that by Frank-Wolfe steps from `choice`; either way the bound holds however exact x is.

    Parameters
    ----------
    joint : JointProblem
        With budgets that can be met.
    choice : int array (units,)
        A good choice within the budgets.

    References
    ----------
    Frank and Wolfe, "An algorithm for quadratic programming", Naval Research Logistics Quarterly 3, 1956;
    Jaggi, "Revisiting Frank-Wolfe", ICML 2013, section 2 (the bound).
    """
    bound = _frank_wolfe(joint, choice)
    if joint.linear.loss.size <= PROGRAMME_ENTRIES:
        mix = _best_mix(joint)
        if mix is not None:
            mixed = np.tensordot(mix, joint.factors.astype(np.float64), axes=2)
            residual = (joint.offset + mixed).astype(np.float32)
            bound = max(bound, _bound_at(joint, residual, joint.gradient(residual))[1])
    return bound


def _bound_at(
    joint: JointProblem, residual: NDArray[np.float32], slope: NDArray[np.float64]
) -> tuple[NDArray[np.intp], float]:
    """The choice of least slope, and the bound that a mix of this residual gives."""
    # f(x) - f'(x) x, of which the linear part drops out
    constant = float(residual.astype(np.float64) @ joint.offset) - half_square(residual)
    problem = replace(joint.linear, loss=slope)
    if len(problem.budgets) > 1:
        priced = cut_to_prices(tightened(problem))
        return priced.choice, constant + priced.value
    single = problem.single(0)
    frontier = lower_frontier(single)
    budget = min(single.budget, cost_range(single).greatest)
    return frontier.choice(budget), constant + frontier.bound(budget)


def _frank_wolfe(joint: JointProblem, choice: NDArray[np.intp]) -> float:
    linear, residual = float(joint.linear.loss_of(choice).sum()), joint.residual(choice)
    bound = -np.inf
    for _ in range(FRANK_WOLFE_STEPS):
        target, below = _bound_at(joint, residual, joint.gradient(residual))
        bound = max(bound, below)
        toward = (joint.residual(target) - residual).astype(np.float64)
        gain = float(joint.linear.loss_of(target).sum()) - linear
        fall, curvature = -gain - float(residual @ toward), float(toward @ toward)
        if fall <= 0 or curvature <= 0:
            break
        part = min(1.0, fall / curvature)
        linear += part * gain
        residual = (residual + part * toward).astype(np.float32)
    return bound


def _best_mix(joint: JointProblem) -> NDArray[np.float64] | None:
    """Shares of the options (units, options) of least joint loss; None where the programme fails."""
    cvxpy: Any = importlib.import_module("cvxpy")
    problem = joint.linear
    units, options = problem.loss.shape
    matrix: NDArray[np.float64] = np.column_stack(
        [joint.factors.reshape(units * options, -1).T, joint.offset]
    ).astype(np.float64)
    if len(matrix) > matrix.shape[1]:
        # Only the Gram matrix matters, which the triangular factor keeps in as many rows as columns.
        matrix = np.asarray(np.linalg.qr(matrix, mode="r"))
    # Squares and losses of very different size from 1 would meet the solver's tolerances too early.
    loss = problem.loss if problem.allowed is None else np.where(problem.allowed, problem.loss, 0.0)
    scale = 1 / max(float(np.abs(loss).max()), float(np.square(matrix).sum(axis=0).max()), 1e-300)
    mix = cvxpy.Variable((units, options), nonneg=True)
    constraints: list[Any] = [cvxpy.sum(mix, axis=1) == 1]
    for cost, budget in zip(problem.costs, problem.budgets, strict=True):
        largest = float(max(cost.max(), 1))
        constraints.append(cvxpy.sum(cvxpy.multiply(cost / largest, mix)) <= budget / largest)
    if problem.allowed is not None:
        constraints.append(mix[~problem.allowed] == 0)
    square = cvxpy.sum_squares(np.sqrt(scale) * (matrix[:, :-1] @ cvxpy.vec(mix, order="C") + matrix[:, -1]))
    linear = cvxpy.sum(cvxpy.multiply(scale * loss, mix))
    programme = cvxpy.Problem(cvxpy.Minimize(linear + square / 2), constraints)
    try:
        programme.solve(solver=cvxpy.CLARABEL)
    except cvxpy.SolverError:
        return None
    found: NDArray[np.float64] | None = mix.value
    return found
