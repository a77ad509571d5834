"""What bounds the joint loss of every choice from below: its convex relaxation over mixes of options."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .codes import CodeSavings
from .dual import cut_to_prices
from .hull import lower_frontier
from .joint import JointProblem, half_square
from .multi import MultiProblem, tightened
from .problem import cost_range

__all__ = ["joint_bound"]

PROGRAMME_ENTRIES = 500
"""Options over all units up to which the relaxation is solved as a quadratic programme."""
FRANK_WOLFE_STEPS = 60


def joint_bound(joint: JointProblem, choice: NDArray[np.intp], savings: CodeSavings | None = None) -> float:
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
        A good choice within the budgets, apart from what groups of one option save.
    savings : CodeSavings, optional
        What groups of units save where they have one option.

    References
    ----------
    Frank and Wolfe, "An algorithm for quadratic programming", Naval Research Logistics Quarterly 3, 1956;
    Jaggi, "Revisiting Frank-Wolfe", ICML 2013, section 2 (the bound).
    """
    # Mixes may be of any choices; what bounds them is counted at the budgets themselves.
    over = (joint.linear.costs_of(choice) - joint.linear.limits).clip(min=0)
    roomy = replace(joint.linear, budgets=tuple((joint.linear.limits + over).tolist()))
    about = _Bound(replace(joint, linear=roomy), over, savings)
    best = _frank_wolfe(about, choice)
    if joint.linear.loss.size <= PROGRAMME_ENTRIES:
        mix = _best_mix(about.joint)
        if mix is not None:
            mixed = np.tensordot(mix, joint.factors.astype(np.float64), axes=2)
            best = max(
                best, about.at((joint.offset + mixed).astype(np.float32)), key=lambda found: found.value
            )
    return about.sharpened(best)


class _Found(NamedTuple):
    """A mix's residual, the choice of least slope there, and the bound that it gives at some prices."""

    residual: NDArray[np.float32]
    choice: NDArray[np.intp]
    prices: NDArray[np.float64]
    value: float


@dataclass(frozen=True, eq=False)
class _Bound:
    """What a bound is about.

    Attributes
    ----------
    joint : JointProblem
        With budgets that its choices without savings can meet.
    over : int64 array (budgets,)
        By how much these are above the budgets themselves.
    savings : CodeSavings or None
    """

    joint: JointProblem
    over: NDArray[np.int64]
    savings: CodeSavings | None

    def at(self, residual: NDArray[np.float32]) -> _Found:
        """The bound that a mix of this residual gives."""
        problem, constant = self._linear(residual)
        if len(problem.budgets) > 1:
            priced = cut_to_prices(tightened(problem))
            choice, value, prices = priced.choice, priced.value, priced.prices
        else:
            single = problem.single(0)
            frontier = lower_frontier(single)
            budget = min(single.budget, cost_range(single).greatest)
            choice, value = frontier.choice(budget), frontier.bound(budget)
            prices = np.array([frontier.shadow_price(budget)])
        if self.savings is not None:
            value = self.savings.bound(problem, prices) + float(prices @ self.over)
        return _Found(residual, choice, prices, constant + value)

    def sharpened(self, found: _Found) -> float:
        """The bound at better prices, as far as savings make others better."""
        if self.savings is None:
            return found.value
        problem, constant = self._linear(found.residual)
        true = replace(problem, budgets=tuple((problem.limits - self.over).tolist()))
        return constant + self.savings.best_bound(true, found.prices)[1]

    def _linear(self, residual: NDArray[np.float32]) -> tuple[MultiProblem, float]:
        """The linear problem of a residual, and what its losses are short of the bound.

        ``f(x) - f'(x) x``, of which the linear part drops out.
        """
        constant = float(residual.astype(np.float64) @ self.joint.offset) - half_square(residual)
        return replace(self.joint.linear, loss=self.joint.gradient(residual)), constant


def _frank_wolfe(about: _Bound, choice: NDArray[np.intp]) -> _Found:
    joint = about.joint
    linear, residual = float(joint.linear.loss_of(choice).sum()), joint.residual(choice)
    best: _Found | None = None
    for _ in range(FRANK_WOLFE_STEPS):
        found = about.at(residual)
        best = found if best is None or found.value > best.value else best
        toward = (joint.residual(found.choice) - residual).astype(np.float64)
        gain = float(joint.linear.loss_of(found.choice).sum()) - linear
        fall, curvature = -gain - float(residual @ toward), float(toward @ toward)
        if fall <= 0 or curvature <= 0:
            break
        part = min(1.0, fall / curvature)
        linear += part * gain
        residual = (residual + part * toward).astype(np.float32)
    assert best is not None
    return best


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
