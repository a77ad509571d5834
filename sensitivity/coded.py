"""Plans below the layer in which layers of one option store no option codes: which ones, and the proof.

Units of a layer say which option they have, unless all have the same. Whether they do is one more choice for
every layer, between its units apart and the layer as one unit that costs less. At the prices of the
relaxation each alternative has a bound of its own; combinations are solved in the order of their bounds,
until none that is left can be better than the best found.
"""

from __future__ import annotations

import contextlib
import heapq
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ..allocator import (
    Certificate,
    JointProblem,
    MultiSolution,
    Status,
    certified_joint,
    check_together,
    deadline_after,
    search_joint,
    solve_multi,
)
from ..errors import InfeasibleError
from .joint import choose_shrinkage, joint_problem, unit_factors
from .task import Task

__all__ = ["solve_coded", "solve_coded_joint"]

MOST_SOLVED = 16
"""Combinations of alternatives that are solved before the bound of the others must do."""
JOINT_ROUNDS = 3


def solve_coded(task: Task, time_limit_s: float | None = None) -> tuple[Task, MultiSolution]:
    """Least additive loss of a task in which no layer need be of one option.

    Returns
    -------
    Task
        The same with the layers that are to have one option.
    MultiSolution
        Its solution, whose certificate holds for every choice of such layers.

    Raises
    ------
    InfeasibleError
        No choice meets the budgets.
    """
    if not task.posed.coded:
        return task, solve_multi(task.problem, time_limit_s=time_limit_s)
    solver = _Solver(task, _Clock(time_limit_s))
    rows = np.array(task.posed.coded)
    found = _first(solver, rows.tolist())
    if found is None:
        check_together(task.savings.everywhere(task.problem))
        with contextlib.suppress(InfeasibleError):
            return task, solve_multi(task.problem)
        raise InfeasibleError(
            f"no choice was found within the budgets {' and '.join(map(repr, task.problem.budget_names))} "
            "together, though each of them can be met: a layer whose units have different options also "
            "stores which one each has. Raise one of them a little, or choose with --unit layer"
        )
    prices = np.array(list(found[1].certificate.shadow_prices.values()))
    prices, least = task.savings.best_bound(task.problem, prices)
    relief = task.savings.relief(task.problem, prices)
    plain = frozenset(rows[relief > 0].tolist())
    open_bound = np.inf
    for extra, flipped in _subsets(np.abs(relief)):
        if least + extra >= solver.best[1].certificate.objective:
            break
        if solver.is_done:
            open_bound = least + extra
            break
        solver.solved(plain ^ frozenset(rows[list(flipped)].tolist()))
    at, solution = solver.best
    unproven = (each.bound for each in solver.certificates if each.status is not Status.OPTIMAL)
    return at, _bounded(at, solution, min([open_bound, *unproven]))


def solve_coded_joint(task: Task, time_limit_s: float | None = None) -> tuple[Task, MultiSolution]:
    """Least joint loss of the same, by local search from the additive optimum; its bound holds likewise.

    Raises
    ------
    InfeasibleError
        No choice meets the budgets.
    InputError
        The profile has no projections of the units.
    """
    clock = _Clock(time_limit_s)
    at, _ = solve_coded(task, clock.left)
    shrinkage = choose_shrinkage(at.problem, unit_factors(at), time_limit_s=clock.left)
    found = _searched(at, shrinkage, clock)
    if at.plain and not clock.is_late:
        with contextlib.suppress(InfeasibleError):
            found = min(found, _searched(task, shrinkage, clock), key=lambda each: each.loss)
    return found.task, found.certified(task, shrinkage)


@dataclass(frozen=True, eq=False)
class _Searched:
    """A choice of little joint loss, and the task whose units it is about."""

    task: Task
    joint: JointProblem
    choice: NDArray[np.intp]
    prices: dict[str, float]

    @property
    def loss(self) -> float:
        """Joint loss of the choice."""
        return self.joint.loss_of(self.choice)

    def certified(self, task: Task, shrinkage: float) -> MultiSolution:
        """With a bound that holds for every choice of layers of one option; `task` has none."""
        if not self.task.plain:
            apart, everywhere = self.joint, self.choice
        else:
            apart = joint_problem(task, shrinkage)
            everywhere = task.choice_of_strips(self.choice[self.task.posed.member])
        found = certified_joint(self.joint, self.choice, self.prices, apart, everywhere, task.savings)
        return replace(found, certificate=found.certificate.model_copy(update={"shrinkage": shrinkage}))


def _searched(at: Task, shrinkage: float, clock: _Clock) -> _Searched:
    """Local search; layers that come out with one option become one unit, and what they save is spent."""
    joint = joint_problem(at, shrinkage)
    choice, prices = search_joint(joint, time_limit_s=clock.left)
    for _ in range(JOINT_ROUNDS):
        alike = _alike(at, choice)
        if not alike or clock.is_late:
            break
        wider = at.with_plain(at.plain | alike)
        start = wider.choice_of_strips(choice[at.posed.member])
        at, joint = wider, joint_problem(wider, shrinkage)
        choice, prices = search_joint(joint, start, time_limit_s=clock.left)
    return _Searched(at, joint, choice, prices)


class _Clock:
    """What is left of a time limit."""

    def __init__(self, time_limit_s: float | None) -> None:
        self._deadline = deadline_after(time_limit_s)

    @property
    def is_late(self) -> bool:
        """Whether nothing is."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    @property
    def left(self) -> float | None:
        """Seconds, never none at all; None without a limit."""
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 1e-3)


@dataclass
class _Solver:
    """Solutions by which layers have one option.

    Attributes
    ----------
    task : Task
        With none of them.
    """

    task: Task
    clock: _Clock
    known: dict[frozenset[int], tuple[Task, MultiSolution] | None] = field(default_factory=dict)

    def solved(self, plain: frozenset[int]) -> tuple[Task, MultiSolution] | None:
        """The solution where these layers have one option; None where no choice meets the budgets."""
        if plain not in self.known:
            at = self.task.with_plain(plain) if plain else self.task
            try:
                self.known[plain] = (at, solve_multi(at.problem, time_limit_s=self.clock.left))
            except InfeasibleError:
                self.known[plain] = None
        return self.known[plain]

    @property
    def best(self) -> tuple[Task, MultiSolution]:
        """That of least loss."""
        found = [each for each in self.known.values() if each is not None]
        return min(found, key=lambda each: each[1].certificate.objective)

    @property
    def certificates(self) -> list[Certificate]:
        """Those of all solutions."""
        return [each[1].certificate for each in self.known.values() if each is not None]

    @property
    def is_done(self) -> bool:
        """Whether no more are to be solved."""
        return self.clock.is_late or len(self.known) >= MOST_SOLVED


def _subsets(weights: NDArray[np.float64]) -> Iterator[tuple[float, tuple[int, ...]]]:
    """All subsets by rising sum of their weights, each with its sum; the empty one first."""
    order = np.argsort(weights, kind="stable").tolist()
    yield 0.0, ()
    waiting: list[tuple[float, tuple[int, ...]]] = [(float(weights[order[0]]), (0,))]
    while waiting:
        total, places = heapq.heappop(waiting)
        yield total, tuple(order[place] for place in places)
        last = places[-1]
        if last + 1 < len(order):
            step = float(weights[order[last + 1]])
            heapq.heappush(waiting, (total + step, (*places, last + 1)))
            heapq.heappush(waiting, (total + step - float(weights[order[last]]), (*places[:-1], last + 1)))


def _bounded(task: Task, solution: MultiSolution, bound: float) -> MultiSolution:
    """The solution with a certificate of this bound of what was left open, where its own has a higher one."""
    own = solution.certificate
    if bound >= own.bound:
        return solution
    status = Status.SEARCH_LIMIT if own.status is Status.OPTIMAL else own.status
    losses, gap = task.problem.loss_of(solution.choice), own.objective - bound
    certificate = Certificate.from_gap(losses, gap, status, own.solver, own.shadow_prices)
    return MultiSolution(solution.choice, solution.loss, solution.costs, certificate)


def _first(solver: _Solver, rows: Sequence[int]) -> tuple[Task, MultiSolution] | None:
    """A solution where no layer has one option, or all have, or one has, or all but one have."""
    found = solver.solved(frozenset()) or solver.solved(frozenset(rows))
    for row in rows:
        if found is not None or solver.is_done:
            break
        found = solver.solved(frozenset([row])) or solver.solved(frozenset(rows) - {row})
    return found


def _alike(task: Task, choice: NDArray[np.intp]) -> frozenset[int]:
    """Layers of several units which all have the same option in a choice."""
    strips, starts = choice[task.posed.member], task.posed.starts
    return frozenset(row for row in task.posed.coded if len(set(strips[starts[row] : starts[row + 1]])) == 1)
