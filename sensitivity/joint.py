"""The joint objective: what options of different units do together, shrunk as far as held-out samples ask.

The projections give the joint loss ``1/2 mean_n sum_r (sum_u v[n, r, u, o_u])^2``. Its products between units
are estimated from few samples, and a solver that minimises over thousands of choices finds those that are
underestimated. They are therefore shrunk by a factor s, which is chosen where the solver does not look:

    loss(o) = (1 - s) sum_u loss[u, o_u] + s/2 mean_n sum_r (sum_u v[n, r, u, o_u])^2,

but strips that no sample reaches, and which have no v, count with all of their loss in the first term. So a
choice has one joint loss, whether a layer of one option is one unit or many.
"""

from __future__ import annotations

import enum
import time
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..allocator import JointProblem, MultiProblem, deadline_after, descend, solve_multi
from ..errors import InputError
from .pooled import pooled_scores
from .task import Task
from .unused import unreached

__all__ = ["Objective", "choose_shrinkage", "joint_problem", "sum_strips", "unit_factors", "unreached_losses"]

SHRINKAGES = (0.7, 0.5, 0.85, 0.25, 0.95, 0.0)
"""In the order in which they are tried: where time allows one, it is one that helped on real networks."""


class Objective(enum.StrEnum):
    """Which loss is minimised: the sum of the units' own losses, or that with their interactions.

    ``block`` counts the interactions of layers within a block, which leaves a problem that is solved exactly;
    ``joint`` those of all units.
    """

    ADDITIVE = "additive"
    BLOCK = "block"
    JOINT = "joint"


def joint_problem(
    task: Task, shrinkage: float | None = None, *, time_limit_s: float | None = None
) -> JointProblem:
    """The joint objective of a task.

    Parameters
    ----------
    shrinkage : float, optional
        s above, 0 to 1; default: chosen on held-out samples, see `choose_shrinkage`.
    time_limit_s : float, optional
        Of that choice.

    Raises
    ------
    InputError
        The profile has no projections of the units.
    """
    factors = unit_factors(task)
    if shrinkage is None:
        shrinkage = choose_shrinkage(task.problem, factors, time_limit_s=time_limit_s)
    return _shrunk(task.problem, factors, shrinkage, unreached_losses(task))


def unreached_losses(task: Task) -> NDArray[np.float64]:
    """What units lose by their strips that no sample reaches, (units, options): no measurement shows it."""
    losses, arrays = np.zeros_like(task.problem.loss), task.arrays
    if arrays is not None:
        strips = unreached(arrays.channel_loss, arrays.channel_error).numpy()
        member = task.posed.member[strips]
        np.add.at(losses, member, pooled_scores(task.profile, arrays)[strips])
    return losses


def unit_factors(task: Task) -> NDArray[np.float32]:
    """v of all options of all units, (units, options, rows), scaled so that half a squared sum is a loss.

    Rows of samples at even positions come first, then as many of samples at odd positions.

    Raises
    ------
    InputError
        The profile has no projections of the units.
    """
    arrays, posed = task.arrays, task.posed
    if arrays is None:
        raise InputError(
            "the profile holds exact scores, which say nothing about interactions; profile with Fisher "
            "scores, or solve with --objective additive"
        )
    scale = 1 / task.profile.samples**0.5
    if all(posed.whole):
        by_layer = arrays.projections.numpy()
        if len(by_layer) % 2:
            by_layer = np.concatenate([by_layer, np.zeros_like(by_layer[:1])])
        halves = [by_layer[part::2].reshape(-1, *by_layer.shape[2:]) for part in (0, 1)]
        strips, member = np.concatenate(halves), posed.member[posed.starts[:-1]]
    elif arrays.factors is not None:
        strips, member = arrays.factors.float().numpy(), posed.member
    else:
        raise InputError(
            f"the profile has no projections per {task.unit}, which the joint objective needs; profile with "
            "--objective joint, or solve with --objective additive or --unit layer"
        )
    return sum_strips(strips, member, task.problem.units) * np.float32(scale)


def sum_strips(
    strips: NDArray[np.floating[Any]], member: NDArray[np.intp], units: int
) -> NDArray[np.floating[Any]]:
    """Sums over the strips of every unit: (rows, strips, options) -> (units, options, rows)."""
    if len(member) != units or bool((member != np.arange(units)).any()):
        total = np.zeros((len(strips), units, strips.shape[2]), strips.dtype)
        for row in range(len(strips)):
            np.add.at(total[row], member, strips[row])
        strips = total
    return np.ascontiguousarray(np.moveaxis(strips, 0, 2))


def choose_shrinkage(
    problem: MultiProblem, factors: NDArray[np.float32], *, time_limit_s: float | None = None
) -> float:
    """The s whose choice has least joint loss on samples that it was not chosen on.

    The samples are halved; a choice is made on one half for each s in 0.7, 0.5, 0.85, 0.25, 0.95, 0, judged
    by the unshrunk joint loss of the other half, and the other way round. Of those that are equal there the
    least is taken.

    Parameters
    ----------
    problem : MultiProblem
        Additive losses, costs and budgets.
    factors : float32 array (units, options, rows)
        See `unit_factors`.
    time_limit_s : float, optional
        Seconds after which no further s is tried; 0.7 always is.
    """
    deadline = deadline_after(time_limit_s)
    start = solve_multi(problem, time_limit_s=time_limit_s).choice
    half = factors.shape[2] // 2
    # Half of the samples give half of the sum.
    halves = [np.float32(2**0.5) * factors[:, :, part] for part in (slice(half), slice(half, None))]
    # The additive losses come from the same half, so that no s has seen the judges.
    owns = [replace(problem, loss=_own(half)) for half in halves]
    judged: dict[float, float] = {}
    for shrinkage in SHRINKAGES:
        loss = 0.0
        for own, seen, judge in zip(owns, halves, halves[::-1], strict=True):
            choice = descend(_shrunk(own, seen, shrinkage), start, deadline=deadline)
            residual = judge[np.arange(problem.units), choice].sum(axis=0, dtype=np.float64)
            loss += float(residual @ residual) / 2
        # Moves that time cut short say nothing about an s that has just begun.
        if judged and deadline is not None and time.monotonic() >= deadline:
            break
        judged[shrinkage] = loss
    return min(judged, key=lambda shrinkage: (judged[shrinkage], shrinkage))


def _own(factors: NDArray[np.float32]) -> NDArray[np.float64]:
    squares: NDArray[np.float64] = np.einsum("uor,uor->uo", factors, factors).astype(np.float64) / 2
    return squares


def _shrunk(
    problem: MultiProblem,
    factors: NDArray[np.float32],
    shrinkage: float,
    kept: NDArray[np.float64] | float = 0.0,
) -> JointProblem:
    """The joint problem; `kept` is the part of the losses that has no products and is not shrunk."""
    linear = replace(problem, loss=(1 - shrinkage) * (problem.loss - kept) + kept)
    return JointProblem(linear, np.float32(shrinkage**0.5) * factors)
