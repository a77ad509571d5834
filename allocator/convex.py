"""Budgets together with constraints of the user's own, through cvxpy."""

from __future__ import annotations

import importlib
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InfeasibleError, InputError
from .choices import MAX_TOTAL_COST
from .conflict import PRECISION, check_together, percent_up
from .multi import MultiProblem, tightened
from .quiet import without_solver_output
from .solution import Certificate, MultiSolution, Status
from .solve import deadline_after

if TYPE_CHECKING:
    import cvxpy

__all__ = ["Constrain", "solve_constrained"]

Constrain = Callable[["cvxpy.Expression"], Sequence["cvxpy.Constraint"]]
"""From the choice matrix, (units, options), to linear constraints on it."""

SOLVER = "HiGHS through cvxpy"
RELAXED_OBJECTIVE = 100.0
"""To what the relaxation's objective is scaled, where HiGHS's absolute tolerances do no harm."""
ROW_SCALE = 1000.0
"""Greatest coefficient of a budget's row."""
BOUND_ERROR = 1e-6
"""What HiGHS's bounds may be wrong by, relative to the objective."""
WITHIN = 1e-6
"""Violation up to which a constraint of the user's counts as met by a choice of whole options."""
LEAST_S, EXPLAINING_S = 0.01, 10.0
"""Least time that is given to a run, and time to find how far budgets are off."""
MOST_ANSWERS = 20
"""Answers that only fit within the solver's tolerance and are ruled out before the search is given up."""


def solve_constrained(
    problem: MultiProblem, constraints: Constrain, *, time_limit_s: float | None = None
) -> MultiSolution:
    """Choose one option for every unit within every budget and under linear constraints of any form.

    With x[u, o] = 1 where unit u has option o, and else 0,
    ``minimise sum loss x  subject to  sum_o x[u, o] = 1,  sum costs[k] x <= budgets[k]`` and whatever
    `constraints` returns; solved as an integer programme, with the relaxation's duals as shadow prices. For
    hundreds of units; where budgets are all there is, `solve_multi` is much faster.

    Parameters
    ----------
    problem : MultiProblem
        Losses, costs and budgets.
    constraints : callable
        Given x, a cvxpy expression (units, options), returns a list of cvxpy constraints, linear in x.
    time_limit_s : float, optional
        Seconds after which the search stops with what it has.

    Returns
    -------
    MultiSolution
        Never over any budget. Where the time limit ended the search, its status says so and its bound is
        what was proven until then.

    Raises
    ------
    InfeasibleError
        Budgets that cannot be met, constraints that leave no choice, budgets and constraints that clash, or
        no choice found within the time limit.
    InputError
        Constraints that are not linear or not constraints, or a time limit that is not above 0.

    Examples
    --------
    At most three units at the option of index 6, and the first unit's option not before the second's::

        rank = np.arange(problem.options)
        solve_constrained(problem, lambda x: [cvxpy.sum(x[:, 6]) <= 3, x[0] @ rank >= x[1] @ rank])
    """
    deadline = deadline_after(time_limit_s)
    check_together(problem)
    tight = tightened(problem)
    mix = _Model.of(tight, constraints, whole=False)
    relaxed = _minimise(mix.loss, mix.all)
    if relaxed.infeasible:
        raise _clash(problem, constraints)
    if not relaxed.complete:
        raise _nothing_found(time_limit_s)
    # Where a mix has no loss to speak of, the losses themselves are the scale.
    least = max(relaxed.value, 1e-9 * float(mix.above.max()))
    found = _search(_Model.of(tight, constraints, whole=True), RELAXED_OBJECTIVE / (least or 1.0), deadline)
    if found.choice is None:
        raise _clash(problem, constraints) if found.status is Status.OPTIMAL else _nothing_found(time_limit_s)
    costs = problem.costs_of(found.choice)
    if not problem.within(found.choice):
        raise RuntimeError(f"a choice of costs {costs} left the solver at budgets of {problem.budgets}")
    above = math.fsum(mix.above[np.arange(problem.units), found.choice])
    gap = max(above - found.bound, 0.0) + BOUND_ERROR * above
    certificate = Certificate.from_gap(
        problem.loss_of(found.choice), gap, found.status, SOLVER, mix.shadow_prices()
    )
    return MultiSolution(found.choice, certificate.objective, tuple(costs.tolist()), certificate)


@dataclass(frozen=True, eq=False)
class _Model:
    """The choice matrix and its constraints.

    Parameters
    ----------
    problem : MultiProblem
        Tightened.
    x : cvxpy.Variable
        Of whole numbers, or between 0 and 1.
    allowed : bool array (units, options)
        False where an option is forbidden.
    above : float64 array (units, options)
        Loss above the unit's least; 0 where an option is forbidden.
    each : list
        One option for every unit, none of the forbidden.
    budgets : list
        A constraint for each budget, on what costs more than the unit's least.
    row_units : tuple of float
        Cost that 1 in a budget's row stands for.
    users : list
        The user's constraints.
    """

    problem: MultiProblem
    x: Any
    allowed: NDArray[np.bool_]
    above: NDArray[np.float64]
    each: list[Any]
    budgets: list[Any]
    row_units: tuple[float, ...]
    users: list[Any]

    @classmethod
    def of(cls, problem: MultiProblem, constraints: Constrain, *, whole: bool) -> _Model:
        cvxpy = _cvxpy()
        allowed = np.ones(problem.loss.shape, np.bool_) if problem.allowed is None else problem.allowed
        least = np.where(allowed, problem.loss, np.inf).min(axis=1)
        above = np.subtract(problem.loss, least[:, None], out=np.zeros(allowed.shape), where=allowed)
        x = cvxpy.Variable(allowed.shape, **({"boolean": True} if whole else {"nonneg": True}))
        rows, row_units = [], []
        for cost, budget in zip(problem.costs, problem.budgets, strict=True):
            lowest = np.where(allowed, cost, MAX_TOTAL_COST).min(axis=1)
            more = np.where(allowed, cost - lowest[:, None], 0)
            row_units.append(max(int(more.max()), 1) / ROW_SCALE)
            spent = cvxpy.sum(cvxpy.multiply(more / row_units[-1], x))
            rows.append(spent <= (budget - int(lowest.sum())) / row_units[-1])
        each = [cvxpy.sum(x, axis=1) == 1, *([] if allowed.all() else [x[~allowed] == 0])]
        return cls(problem, x, allowed, above, each, rows, tuple(row_units), _users(constraints, x))

    @property
    def loss(self) -> Any:
        """Total loss above the least, as an expression."""
        cvxpy = _cvxpy()
        return cvxpy.sum(cvxpy.multiply(self.above, self.x))

    @property
    def all(self) -> list[Any]:
        """All constraints."""
        return [*self.each, *self.budgets, *self.users]

    def shadow_prices(self) -> dict[str, float]:
        """Loss per unit of each budget, once the relaxation is solved."""
        return {
            name: max(float(row.dual_value) / unit, 0.0)
            for name, row, unit in zip(self.problem.budget_names, self.budgets, self.row_units, strict=True)
        }

    def choice(self) -> NDArray[np.intp]:
        """Options that are taken, once the problem is solved."""
        return np.asarray(self.x.value.argmax(axis=1))

    def meets(self, choice: NDArray[np.intp]) -> bool:
        """Whether a choice of whole options is within the budgets and meets the user's constraints."""
        self.x.save_value(np.eye(self.problem.options)[choice])
        return self.problem.within(choice) and all(
            float(np.max(constraint.violation(), initial=0.0)) <= WITHIN for constraint in self.users
        )


def _cvxpy() -> Any:
    """cvxpy, which takes longer to import than most problems take to solve; its own types are partial."""
    return importlib.import_module("cvxpy")


class _Answer(NamedTuple):
    """How a run ended: without any answer, without any possible one, or with the objective and its bound."""

    value: float
    bound: float
    complete: bool = True

    @property
    def infeasible(self) -> bool:
        return self.complete and math.isinf(self.value)


def _users(constraints: Constrain, x: Any) -> list[Any]:
    """The user's constraints, of which HiGHS can make rows."""
    cvxpy = _cvxpy()
    users = list(constraints(x))
    for constraint in users:
        if not isinstance(constraint, cvxpy.Constraint):
            raise InputError(
                f"{constraint!r} is a {type(constraint).__name__}, not a constraint; compare expressions of "
                "the choice matrix with <=, >= or =="
            )
    try:
        cvxpy.Problem(cvxpy.Minimize(0), users).get_problem_data(cvxpy.SCIPY)
    except (cvxpy.error.DCPError, cvxpy.error.SolverError) as error:
        listed = "; ".join(str(constraint) for constraint in users)
        raise InputError(
            f"the constraints are not all linear in the choice matrix: {listed[:500]}"
        ) from error
    return users


def _minimise(objective: Any, constraints: list[Any], **limits: float) -> _Answer:
    """Solve with scipy's HiGHS; highspy's prints on standard output, which belongs to the caller."""
    cvxpy = _cvxpy()
    model = cvxpy.Problem(cvxpy.Minimize(objective), constraints)
    with warnings.catch_warnings(), without_solver_output():
        # An incumbent at a limit is told of by the status instead.
        warnings.simplefilter("ignore", UserWarning)
        try:
            model.solve(solver=cvxpy.SCIPY, scipy_options={**limits})
        except cvxpy.error.SolverError:
            return _Answer(math.inf, -math.inf, complete=False)
    if model.status in (cvxpy.INFEASIBLE, cvxpy.INFEASIBLE_INACCURATE):
        return _Answer(math.inf, math.inf)
    value = float(model.value)
    bound = (model.solver_stats.extra_stats or {}).get("mip_dual_bound", value)
    return _Answer(value, float(bound), model.status == cvxpy.OPTIMAL)


class _Found(NamedTuple):
    """The best choice, if any, and the least loss above the units' least that is possible."""

    choice: NDArray[np.intp] | None
    bound: float
    status: Status


def _search(model: _Model, scale: float, deadline: float | None) -> _Found:
    """Solve until an answer holds in integers; one that only fits within tolerances is ruled out."""
    cvxpy = _cvxpy()
    ruled_out: list[Any] = []
    bound = 0.0
    for _ in range(MOST_ANSWERS):
        limits = {"mip_rel_gap": 0.0}
        if deadline is not None:
            limits["time_limit"] = max(deadline - time.monotonic(), LEAST_S)
        answer = _minimise(scale * model.loss, [*model.all, *ruled_out], **limits)
        if answer.infeasible:
            return _Found(None, math.inf, Status.OPTIMAL)
        if math.isfinite(answer.bound):
            bound = max(bound, answer.bound / scale)
        choice = model.choice() if math.isfinite(answer.value) else None
        if choice is not None and model.meets(choice):
            late = Status.SEARCH_LIMIT if deadline is None else Status.TIME_LIMIT
            return _Found(choice, bound, Status.OPTIMAL if answer.complete else late)
        if choice is None or not answer.complete:
            break
        taken = cvxpy.sum(model.x[np.arange(len(choice)), choice])
        ruled_out.append(taken <= len(choice) - 1)
    return _Found(None, bound, Status.SEARCH_LIMIT)


def _clash(problem: MultiProblem, constraints: Constrain) -> InfeasibleError:
    """Why budgets and constraints leave no choice: constraints alone, or how much budgets fall short."""
    cvxpy = _cvxpy()
    model = _Model.of(problem, constraints, whole=True)
    factor = cvxpy.Variable(nonneg=True)
    # A budget of 0 cannot grow by a part.
    spent = [
        cvxpy.sum(cvxpy.multiply(np.where(model.allowed, cost, 0) / max(budget, 1), model.x))
        <= (factor if budget else 0)
        for cost, budget in zip(problem.costs, problem.budgets, strict=True)
    ]
    # Where whole options take too long, the bound is what a mix needs or a little more.
    answer = _minimise(factor, [*model.each, *model.users, *spent], time_limit=EXPLAINING_S)
    if answer.infeasible:
        return InfeasibleError(
            "the constraints leave no choice of one allowed option for every unit, however large the "
            "budgets; loosen a constraint"
        )
    excess = answer.bound - 1
    names = " and ".join(f"'{name}'" for name in problem.budget_names)
    larger = (
        f": all of them would have to be at least {percent_up(excess)} larger" if excess > PRECISION else ""
    )
    return InfeasibleError(
        f"no choice that meets the constraints is within the budgets {names}{larger}; raise them, loosen a "
        "constraint or allow cheaper options"
    )


def _nothing_found(time_limit_s: float | None) -> InfeasibleError:
    when = "was found" if time_limit_s is None else f"was found within {time_limit_s:g} s"
    return InfeasibleError(
        f"no choice within the budgets and the constraints {when}, and none is ruled out; give more time, "
        "raise a budget or loosen a constraint"
    )
