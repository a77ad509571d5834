"""The proven optimum of what prices leave undecided under several budgets, by HiGHS's branch and bound.

Only options of less excess than a known choice can be part of a better one; with the others gone, and losses
counted as excess, a problem of thousands of units shrinks to one that a solver meets in its best scale: the
known choice has an objective of 100. Every answer is checked in integers. One that only fits within the
solver's tolerance is ruled out, and the search repeated.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .multi import MultiProblem
from .quiet import without_solver_output
from .residue import Residue, excess_of
from .solution import Status

__all__ = ["Search", "branch"]

KNOWN_OBJECTIVE = 100.0
ROW_SCALE = 1000.0
"""Greatest coefficient of a budget's row."""
TOLERANCE = 1e-6
"""Within which HiGHS takes a row as met."""
BOUND_ERROR = 1e-7
"""What HiGHS's bounds may be wrong by, in parts of `KNOWN_OBJECTIVE`."""
MOST_NODES = 5_000
COMPLETE, IMPOSSIBLE = 0, 2
"""Statuses of scipy's `milp`."""
MOST_ANSWERS = 20
"""Answers outside the budgets that are ruled out before the search is given up."""


@dataclass(frozen=True, eq=False)
class Search:
    """What branch and bound found and proved.

    Parameters
    ----------
    choice : int array (units,), optional
        The best choice found; None where none is within the budgets.
    least_excess : float
        No choice within the budgets has less excess; infinite where there is none at all.
    status : Status
        Whether the search was complete, and if not, what stopped it.
    """

    choice: NDArray[np.intp] | None
    least_excess: float
    status: Status


def branch(
    problem: MultiProblem,
    residue: Residue,
    known: NDArray[np.intp] | None,
    *,
    deadline: float | None = None,
    most_nodes: int = MOST_NODES,
) -> Search:
    """Find the choice of least excess.

    Parameters
    ----------
    problem : MultiProblem
        The problem.
    residue : Residue
        Every option of less excess than the known choice; all options where none is known. With fewer, what
        is found is a choice, and nothing is proven.
    known : int array (units,), optional
        A choice within the budgets.
    deadline : float, optional
        Time on `time.monotonic` at which to stop with what is found.
    most_nodes : int
        Nodes of the search tree after which to stop.
    """
    known_excess = math.inf if known is None else excess_of(problem, residue.priced, known)[0]
    best, best_excess = known, known_excess
    if not len(residue.unit):
        base = residue.priced.choice
        excess = excess_of(problem, residue.priced, base)[0]
        if problem.within(base) and excess < best_excess:
            best, best_excess = base, excess
        return Search(best, best_excess, Status.OPTIMAL)
    model = _Model(residue, known_excess, most_nodes)
    stopped = Status.SEARCH_LIMIT
    for _ in range(MOST_ANSWERS):
        remaining = None if deadline is None else deadline - time.monotonic()
        if remaining is not None and remaining <= 0:
            stopped = Status.TIME_LIMIT
            break
        answer = model.run(remaining)
        if answer.impossible:
            return Search(best, best_excess, Status.OPTIMAL)
        if answer.taken is not None:
            choice = residue.choice(answer.taken)
            excess = excess_of(problem, residue.priced, choice)[0]
            within = problem.within(choice)
            if within and excess < best_excess:
                best, best_excess = choice, excess
            if answer.complete and not within:
                model.rule_out(answer.taken)
                continue
        if answer.complete:
            return Search(best, min(model.proven, best_excess), Status.OPTIMAL)
        if deadline is not None and not answer.all_nodes:
            stopped = Status.TIME_LIMIT
        break
    return Search(best, min(model.proven, best_excess), stopped)


class _Answer(NamedTuple):
    """What one run ended with: the entries taken; whether it was complete, or nothing is possible, or all
    nodes were used."""

    taken: NDArray[np.intp] | None
    complete: bool
    impossible: bool
    all_nodes: bool


class _Model:
    """The integer programme over a residue.

    ``minimise sum excess_i x_i + sum_k p_k s_k`` with ``sum_i costs[k, i] x_i + s_k = slack_k``, ``s >= 0``,
    one entry at most for each unit and whole x; excess and costs scaled.
    """

    def __init__(self, residue: Residue, known_excess: float, most_nodes: int) -> None:
        from scipy import sparse

        self._count, self._nodes = len(residue.unit), most_nodes
        size = np.maximum(np.abs(residue.costs).max(axis=1), 1) / ROW_SCALE
        worth = residue.priced.prices * size
        known = known_excess if 0 < known_excess < math.inf else float(residue.excess.max())
        self._scale = (known or float(worth.max()) or 1.0) / KNOWN_OBJECTIVE
        # The rows hold within their tolerance, and what breaks them is worth its price.
        self._error = BOUND_ERROR * KNOWN_OBJECTIVE * self._scale + 2 * TOLERANCE * float(worth.sum())
        self.proven = 0.0
        self._objective = np.concatenate([residue.excess, worth]) / self._scale
        units, row = np.unique(residue.unit, return_inverse=True)
        one_each = sparse.csr_array(
            (np.ones(self._count), (row, np.arange(self._count))),
            shape=(len(units), self._count + len(size)),
        )
        spent = sparse.hstack([sparse.csr_array(residue.costs / size[:, None]), sparse.eye_array(len(size))])
        left = residue.slack / size
        self._rows = [(one_each, -math.inf, 1.0), (spent, left, left)]

    def run(self, seconds: float | None) -> _Answer:
        """Solve, and raise `proven` to what is proven now."""
        from scipy.optimize import Bounds, LinearConstraint, milp

        others = len(self._objective) - self._count
        with without_solver_output():
            result = milp(
                self._objective,
                integrality=np.append(np.ones(self._count), np.zeros(others)),
                bounds=Bounds(0, np.append(np.ones(self._count), np.full(others, np.inf))),
                constraints=[LinearConstraint(*row) for row in self._rows],
                options={"mip_rel_gap": 0.0, "node_limit": self._nodes}
                | ({} if seconds is None else {"time_limit": seconds}),
            )
        bound = result.get("mip_dual_bound")
        if bound is not None and math.isfinite(bound):
            self.proven = max(self.proven, bound * self._scale - self._error)
        taken = None if result.x is None else np.flatnonzero(result.x[: self._count] > 0.5)
        nodes = result.get("mip_node_count") or 0
        return _Answer(taken, result.status == COMPLETE, result.status == IMPOSSIBLE, nodes >= self._nodes)

    def rule_out(self, taken: NDArray[np.intp]) -> None:
        """Exclude exactly this set of entries."""
        signs = np.zeros((1, len(self._objective)))
        signs[0, : self._count] = -1.0
        signs[0, taken] = 1.0
        self._rows.append((signs, -math.inf, len(taken) - 1.0))
