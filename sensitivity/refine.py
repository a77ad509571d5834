"""Re-scoring around the current plan: moves that the true loss confirms, within a trust region.

Below about 3.5 bits the second order at the float network misleads. Around a plan x with weights W(x), the
true loss L = mean KL(float || quantized) is, for a move to the choice y that changes weights by D,

    L(y) ~ L(x) + < dL/dW , D > + k/2 mean_n sum_r ( (1 - s) sum_u v_u^2 + s (sum_u v_u)^2 ),

with W(x) what the scored method makes of the weights under x (nearest rounding, or GPTQ row by row), and v_u
the projection of unit u's move on the output directions *at x*. The slope is exact and costs one
forward and one backward pass; the curvature is that of `score_fisher` around x, and is taken again when moves
no longer succeed. The damping k is the trust region (Levenberg, Quarterly of Applied Mathematics 2, 1944): it
rises until the true loss, measured, falls, and sinks after good moves. Of strips that no sample reaches no
measurement shows a loss: their scores are added to what is measured, and to what is expected.

Slopes, curvature and the loss that accepts a move come from one half of the data. A path of moves that fits
a few hundred samples by thousands of choices lowers their loss whether it is good or not, so the loss on the
other half says which plan of the path is returned. Where moves no longer better that, the path goes back to
the best plan and leaves it by smaller moves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..allocator import JointProblem, Plan, Refinement, descend
from ..errors import InfeasibleError, InputError
from ..network import Data, Network
from .around import Around
from .candidates import OptionWeights
from .fisher import FisherSettings
from .joint import unreached_losses
from .profile import Profile, ProfileArrays
from .task import Task, task_of

__all__ = ["RefineStep", "Refined", "refine", "refine_plan"]

SHRINKAGE = 0.7
FIRST_DAMPING, LEAST_DAMPING, GREATEST_DAMPING = 2.0, 0.25, 500.0
DAMPED = 2.5
"""How much smaller moves become after one that was no good."""
TRUSTED = 0.6
"""Share of the predicted fall from which on a move counts as a good one, after which moves may be larger."""
MOVED_ON = 0.5
"""Share of the samples that moves are computed from and accepted on; the others decide what is returned."""
PATIENCE = 2
"""Accepted moves in a row that do not better the best plan, after which the path goes back to it."""


class RefineStep(NamedTuple):
    """One measured move.

    Parameters
    ----------
    evaluations : int
        Measurements of the true loss so far.
    moved : int
        Units that would change their option.
    predicted, loss : float
        What the model expects and what was measured, on the samples that moves come from; the scores of what
        no sample reaches are in both.
    deciding : float or None
        Measured on the samples that decide; None where the move was refused.
    best : bool
        Whether no plan before has less loss there, the start included.
    """

    evaluations: int
    moved: int
    predicted: float
    loss: float
    deciding: float | None
    best: bool

    @property
    def accepted(self) -> bool:
        """Whether the loss fell, so that the path went on from here."""
        return self.deciding is not None


@dataclass(frozen=True)
class Refined:
    """Where the moves led.

    Attributes
    ----------
    choice : int array (units,)
    start_loss, loss : float
        Measured before and after, on the samples that decide, with the scores of what no sample reaches.
    steps : tuple of RefineStep
    """

    choice: NDArray[np.intp]
    start_loss: float
    loss: float
    steps: tuple[RefineStep, ...]


def refine(
    network: Network,
    data: Data,
    task: Task,
    starts: Sequence[NDArray[np.intp]],
    evaluations: int,
    *,
    weights: OptionWeights | None = None,
    settings: FisherSettings | None = None,
    on_step: Callable[[RefineStep], None] | None = None,
) -> Refined:
    """Move a choice within the budgets while the measured loss falls, and return the best of the path.

    Parameters
    ----------
    network : Network
        The float network of the task's profile.
    data : Data
        Calibration inputs. The path is computed and accepted on the first half of them, the second half
        decides which choice of the path is returned; of a single sample both.
    task : Task
        Units, options, budgets and constraints.
    starts : sequence of int array (units,)
        Choices within the budgets, such as ``task.choice_of(plan)``. The path begins at the one of least loss
        on the samples that decide.
    evaluations : int
        Most moves that are measured; slopes and scores are not counted, and cost about as much again.
    weights : callable, optional
        What made the weights that the profile scores; default: rounding to nearest.
    settings : FisherSettings, optional
        Of the curvature around later choices; the first is that of the profile where it has the projections.
    on_step : callable, optional
        Told every measured move.

    Returns
    -------
    Refined
        Never of a greater loss than any start on the samples that decide.

    Raises
    ------
    InputError
        The profile scores weights after a method, and `weights` is missing.
    """
    after = task.profile.after
    if after != "nearest" and weights is None:
        raise InputError(
            f"the profile scores what {after} makes of the weights, and moves are measured of the same; give "
            "what made them as `weights`"
        )
    around = Around(network, *_halves(data), task, settings or FisherSettings(), weights)
    unseen = unreached_losses(task)
    places = [_Place(around, unseen, start) for start in starts]
    origin = here = best = min(places, key=lambda place: place.deciding)
    curvature, stale = around.curvature_at_float(), True
    damping, refused, worse, steps = FIRST_DAMPING, here.choice, 0, list[RefineStep]()
    leaving = damping, here.choice
    while len(steps) < evaluations and LEAST_DAMPING <= damping <= GREATEST_DAMPING:
        moved, predicted = _move(task, here, curvature, damping)
        if (moved == here.choice).all():
            if refused is not here.choice:
                break
            damping /= 4
            continue
        if (moved == refused).all():
            damping *= DAMPED
            continue
        there = _Place(around, unseen, moved)
        accepted = there.loss < here.loss
        better = accepted and there.deciding < best.deciding
        units, deciding = int((moved != here.choice).sum()), there.deciding if accepted else None
        steps.append(RefineStep(len(steps) + 1, units, here.loss + predicted, there.loss, deciding, better))
        if on_step is not None:
            on_step(steps[-1])
        if not accepted:
            refused = moved
            damping *= DAMPED
            if stale:
                curvature, stale = around.curvature(here.choice), False
            continue
        if here is best:
            leaving = damping, moved
        if here.loss - there.loss > -TRUSTED * predicted:
            damping = max(damping / 2, LEAST_DAMPING)
        here, refused, stale = there, moved, True
        best, worse = (here, 0) if better else (best, worse + 1)
        if worse == PATIENCE:
            (damping, refused), here, worse = leaving, best, 0
            damping *= DAMPED
    return Refined(best.choice, origin.deciding, best.deciding, tuple(steps))


class _Place:
    """A choice with what is measured there, once something asks for it.

    To the losses `unseen` is added: those of what no sample reaches, (units, options).
    """

    def __init__(self, around: Around, unseen: NDArray[np.float64], choice: NDArray[np.intp]) -> None:
        self._around, self._unseen, self.choice = around, unseen, choice
        self._added = float(unseen[np.arange(len(choice)), choice].sum())

    @cached_property
    def loss(self) -> float:
        return self._around.loss(self.choice) + self._added

    @cached_property
    def deciding(self) -> float:
        return self._around.deciding_loss(self.choice) + self._added

    @cached_property
    def slope(self) -> NDArray[np.float64]:
        return self._around.slope(self.choice) + self._unseen


def refine_plan(
    network: Network,
    data: Data,
    profile: Profile,
    arrays: ProfileArrays | None,
    plan: Plan,
    evaluations: int,
    *,
    weights: OptionWeights | None = None,
    rivals: Sequence[Plan] = (),
    time_limit_s: float | None = None,
    on_step: Callable[[RefineStep], None] | None = None,
) -> Plan:
    """`refine` from plan to plan; the document gives an account of the measurements.

    Parameters
    ----------
    weights : callable, optional
        What made the weights that the profile scores; default: rounding to nearest.
    rivals : sequence of Plan
        Others under the same limits, from which the path may begin too: those of the same units or of whole
        layers, by the same scores and with the same activations.
    time_limit_s : float, optional
        Of every search by scores.

    Returns
    -------
    Plan
        Of the units of `plan`; itself, with the account, where nothing betters it.
    """
    task = task_of(profile, arrays, plan)
    if not task.problem.within(task.choice_of(plan)):
        # What layers of one option save is spent, so they keep one.
        plain = (row for row in task.posed.coded if plan.layers[row].option is not None)
        task = task.with_plain(frozenset(plain))
    starts = [task.choice_of(plan)]
    for rival in rivals:
        alike = rival.unit in (plan.unit, "layer") and rival.profile == plan.profile
        alike &= all(rival.layers[row].option is not None for row in task.plain)
        if alike and [value.option for value in rival.activations] == list(task.widths):
            # Finer units store more than whole layers, for which there may be no room.
            with contextlib.suppress(InfeasibleError):
                starts.append(task.choice_within(rival, time_limit_s=time_limit_s))
    found = refine(network, data, task, starts, evaluations, weights=weights, on_step=on_step)
    taken = sum(step.best for step in found.steps)
    account = Refinement(
        evaluations=len(found.steps),
        accepted=taken,
        start_loss=found.start_loss,
        loss=found.loss,
        data=data.name,
    )
    refined = plan
    if (found.choice != starts[0]).any():
        refined = task.plan_of(found.choice, time_limit_s=time_limit_s)
    return refined.model_copy(update={"refinement": account})


def _halves(data: Data) -> tuple[Data, Data]:
    """The samples that moves are computed from, and those that decide; of a single sample both."""
    count = len(data.inputs)
    half = max(1, round(MOVED_ON * count))
    first = data.part(slice(half))
    return (first, first) if half == count else (first, data.part(slice(half, None)))


def _move(
    task: Task, place: _Place, curvature: NDArray[np.float32], damping: float
) -> tuple[NDArray[np.intp], float]:
    """The choice of least modelled loss from here, and the change of the loss that the model expects."""
    units, choice, slope = np.arange(task.problem.units), place.choice, place.slope
    own = np.einsum("uor,uor->uo", curvature, curvature)
    here = curvature[units, choice]
    own = own - 2 * (curvature @ here[:, :, None])[:, :, 0] + own[units, choice][:, None]
    linear = slope - slope[units, choice][:, None] + damping * (1 - SHRINKAGE) / 2 * np.maximum(own, 0)
    scale = np.float32((damping * SHRINKAGE) ** 0.5)
    joint = JointProblem(
        replace(task.problem, loss=linear), scale * curvature, -scale * here.sum(axis=0, dtype=np.float64)
    )
    moved = descend(joint, choice)
    return moved, joint.loss_of(moved) - joint.loss_of(choice)
