"""Re-scoring around the current plan: moves that the true loss confirms, within a trust region.

Below about 3.5 bits the second order at the float network misleads. Around a plan x with weights W(x), the
true loss L = mean KL(float || quantized) is, for a move to the choice y that changes weights by D,

    L(y) ~ L(x) + < dL/dW , D > + k/2 mean_n sum_r ( (1 - s) sum_u v_u^2 + s (sum_u v_u)^2 ),

with v_u the projection of unit u's move on the output directions *at x*. The slope is exact and costs one
forward and one backward pass; the curvature is that of `score_fisher` around x, and is taken again when moves
no longer succeed. The damping k is the trust region (Levenberg, Quarterly of Applied Mathematics 2, 1944): it
rises until the true loss, measured, falls, and sinks after good moves.

Slopes, curvature and the loss that accepts a move come from one half of the data. A path of moves that fits
a few hundred samples by thousands of choices lowers their loss whether it is good or not, so the loss on the
other half says which plan of the path is returned. Where moves no longer better that, the path goes back to
the best plan and leaves it by smaller moves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..allocator import JointProblem, Plan, Refinement, descend
from ..errors import InfeasibleError
from ..network import Data, Network, batches, float_logits, from_rows, kl_divergence, measure_quality, rows
from ..quantizer import Quantizer, parse_option
from .candidates import cut_of, perturbations
from .fisher import FisherSettings, score_fisher
from .joint import sum_strips, unit_factors
from .profile import Profile, ProfileArrays
from .task import Task, task_of

__all__ = ["Around", "RefineStep", "Refined", "refine", "refine_plan"]

SHRINKAGE = 0.7
FIRST_DAMPING, LEAST_DAMPING, GREATEST_DAMPING = 2.0, 0.25, 500.0
DAMPED = 2.5
"""How much smaller moves become after one that was no good."""
PARTS = 8
"""Parts of the data whose slopes are compared: what differs between them as much as it is large is noise."""
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
        What the model expects and what was measured, on the samples that moves come from.
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
        Measured before and after, on the samples that decide.
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
    settings : FisherSettings, optional
        Of the curvature around later choices; the first is that of the profile where it has the projections.
    on_step : callable, optional
        Told every measured move.

    Returns
    -------
    Refined
        Never of a greater loss than any start on the samples that decide.
    """
    around = Around(network, *_halves(data), task, settings or FisherSettings())
    places = [_Place(around, start) for start in starts]
    origin = here = best = min(places, key=lambda place: place.deciding)
    curvature, stale = around.curvature_at_float(), True
    damping, refused, worse, steps = FIRST_DAMPING, here.choice, 0, list[RefineStep]()
    leaving = damping, here.choice
    while len(steps) < evaluations and LEAST_DAMPING <= damping <= GREATEST_DAMPING:
        moved, predicted = _move(task, here.slope, curvature, here.choice, damping)
        if (moved == here.choice).all():
            if refused is not here.choice:
                break
            damping /= 4
            continue
        if (moved == refused).all():
            damping *= DAMPED
            continue
        there = _Place(around, moved)
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
    """A choice with what is measured there, once something asks for it."""

    def __init__(self, around: Around, choice: NDArray[np.intp]) -> None:
        self._around, self.choice = around, choice

    @cached_property
    def loss(self) -> float:
        return self._around.loss(self.choice)

    @cached_property
    def deciding(self) -> float:
        return self._around.deciding_loss(self.choice)

    @cached_property
    def slope(self) -> NDArray[np.float64]:
        return self._around.slope(self.choice)


def refine_plan(
    network: Network,
    data: Data,
    profile: Profile,
    arrays: ProfileArrays | None,
    plan: Plan,
    evaluations: int,
    *,
    rivals: Sequence[Plan] = (),
    on_step: Callable[[RefineStep], None] | None = None,
) -> Plan:
    """`refine` from plan to plan; the document gives an account of the measurements.

    Parameters
    ----------
    rivals : sequence of Plan
        Others under the same limits, from which the path may begin too: those of the same units or of whole
        layers, by the same scores and with the same activations.

    Returns
    -------
    Plan
        Of the units of `plan`; itself, with the account, where nothing betters it.
    """
    task = task_of(profile, arrays, plan)
    starts = [task.choice_of(plan)]
    for rival in rivals:
        alike = rival.unit in (plan.unit, "layer") and rival.profile == plan.profile
        if alike and [value.option for value in rival.activations] == list(task.widths):
            # Finer units store more than whole layers, for which there may be no room.
            with contextlib.suppress(InfeasibleError):
                starts.append(task.choice_within(rival))
    found = refine(network, data, task, starts, evaluations, on_step=on_step)
    taken = sum(step.best for step in found.steps)
    account = Refinement(
        evaluations=len(found.steps),
        accepted=taken,
        start_loss=found.start_loss,
        loss=found.loss,
        data=data.name,
    )
    refined = plan if (found.choice == starts[0]).all() else task.plan_of(found.choice)
    return refined.model_copy(update={"refinement": account})


def _halves(data: Data) -> tuple[Data, Data]:
    """The samples that moves are computed from, and those that decide; of a single sample both."""
    count = len(data.inputs)
    half = max(1, round(MOVED_ON * count))
    first = data.part(slice(half))
    return (first, first) if half == count else (first, data.part(slice(half, None)))


def _move(
    task: Task,
    slope: NDArray[np.float64],
    curvature: NDArray[np.float32],
    choice: NDArray[np.intp],
    damping: float,
) -> tuple[NDArray[np.intp], float]:
    """The choice of least modelled loss from here, and the change of the loss that the model expects."""
    units = np.arange(task.problem.units)
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


class Around:
    """The network under a choice: its true loss, the slope of it, and the curvature around it.

    Parameters
    ----------
    data : Data
        What slope and curvature are computed from.
    deciding : Data
        What says which choice is returned.
    """

    def __init__(
        self, network: Network, data: Data, deciding: Data, task: Task, settings: FisherSettings
    ) -> None:
        self._network, self._data, self._deciding, self._task = network, data, deciding, task
        self._options = [parse_option(text) for text in task.profile.options]
        self._quantizer = Quantizer.from_settings(task.profile.quantizer)
        cut = task.profile.cut
        self._settings = replace(settings, cut=cut)
        self._cuts = [cut_of(layer, cut) for layer in network.layers]
        self._changes = [
            perturbations(network, layer, self._options, self._quantizer, cut) for layer in network.layers
        ]
        self._reference = float_logits(network, data)
        self._deciding_reference = float_logits(network, deciding)
        activations = task.profile.activations
        self._values = {} if activations is None else activations.entries(task.widths)

    def tensors(self, choice: NDArray[np.intp]) -> dict[str, Tensor]:
        """The weights under a choice, by tensor name, and what quantizes values."""
        found = dict(self._values)
        posed = self._task.posed
        for row, layer in enumerate(self._network.layers):
            weight = self._network.weight(layer)
            strips = choice[posed.member[posed.starts[row] : posed.starts[row + 1]]]
            cut, changes = self._cuts[row], self._changes[row]
            columns = torch.from_numpy(strips).to(weight.device)
            if cut.inputs:
                wide = columns.repeat_interleave(cut.inputs)
                change = changes.gather(1, wide.expand(layer.channels, 1, -1))[:, 0]
            else:
                change = changes[torch.arange(layer.channels, device=weight.device), columns]
            changed = rows(layer, weight).to(torch.float32) + change
            found[layer.weight] = from_rows(layer, changed).to(weight.dtype)
        return found

    def loss(self, choice: NDArray[np.intp]) -> float:
        """Measured KL of the float output to that under the choice, on the samples of the moves."""
        return self.loss_with(choice, {})

    def loss_with(self, choice: NDArray[np.intp], tensors: Mapping[str, Tensor]) -> float:
        """The same with some weights replaced once more."""
        changed = self.tensors(choice) | dict(tensors)
        return measure_quality(self._network, self._data, changed, self._reference).loss

    def deciding_loss(self, choice: NDArray[np.intp]) -> float:
        """Measured KL of the float output to that under the choice, on the samples that decide."""
        changed = self.tensors(choice)
        return measure_quality(self._network, self._deciding, changed, self._deciding_reference).loss

    def slope(self, choice: NDArray[np.intp]) -> NDArray[np.float64]:
        """< dL/dW, dW(o) > of every option of every unit, (units, options), shrunk by its own noise.

        With the slopes of several parts of the data, of mean m and variance of that mean v, both relative to
        the chosen option, what is kept is ``m max(0, 1 - v / m^2)``.
        """
        units = np.arange(self._task.problem.units)
        order = torch.randperm(
            len(self._data.inputs), generator=torch.Generator().manual_seed(self._settings.seed)
        )
        slopes = np.stack([self.part_slope(choice, part.numpy()) for part in order.chunk(PARTS)])
        slopes -= slopes[:, units, choice][:, :, None]
        mean = slopes.mean(axis=0)
        noise = slopes.var(axis=0, ddof=1) / len(slopes) if len(slopes) > 1 else 0.0
        kept: NDArray[np.float64] = mean * np.maximum(0.0, 1 - noise / np.maximum(mean**2, 1e-300))
        return kept

    def curvature_at_float(self) -> NDArray[np.float32]:
        """Factors of the Fisher information at the float weights: the profile's, from all of its samples."""
        arrays = self._task.arrays
        if arrays is None or (arrays.factors is None and not all(self._task.posed.whole)):
            return self._factors(None)
        return unit_factors(self._task)

    def curvature(self, choice: NDArray[np.intp]) -> NDArray[np.float32]:
        """Factors of the Fisher information around a choice, (units, options, rows)."""
        return self._factors(self.tensors(choice))

    def _factors(self, around: Mapping[str, Tensor] | None) -> NDArray[np.float32]:
        scores = score_fisher(
            self._network, self._data, self._options, self._quantizer, self._settings, around=around
        )
        assert scores.factors is not None
        return self._of_units(scores.factors.numpy() / np.float32(scores.samples**0.5))

    def part_slope(self, choice: NDArray[np.intp], part: NDArray[np.intp]) -> NDArray[np.float64]:
        """< dL/dW, dW(o) > over some samples, (units, options)."""
        tensors = self.tensors(choice)
        for layer in self._network.layers:
            tensors[layer.weight].requires_grad_()
        with torch.enable_grad():
            for piece in batches(len(part)):
                index = torch.from_numpy(part[piece])
                logits = self._network.run(self._data.inputs[index].to(self._network.device), tensors=tensors)
                reference = self._reference[index].to(logits.device)
                (kl_divergence(reference, logits).sum() / len(part)).backward()  # type: ignore[no-untyped-call]
        strips = []
        for row, layer in enumerate(self._network.layers):
            gradient = tensors[layer.weight].grad
            assert gradient is not None
            product = rows(layer, gradient).to(torch.float32)[:, None] * self._changes[row]
            inputs = self._cuts[row].inputs
            # Strips of inputs are sums over all channels, the others over a channel's inputs.
            cells = product.reshape(*product.shape[:2], -1, inputs or product.shape[2]).sum(3)
            strips.append((cells.sum(0).T if inputs else cells[:, :, 0]).double().cpu())
        slope: NDArray[np.float64] = self._of_units(torch.cat(strips)[None].numpy())[..., 0]
        return slope

    def _of_units(self, strips: NDArray[np.floating[Any]]) -> NDArray[Any]:
        """Sums over the strips of every unit, (units, options, rows)."""
        return sum_strips(strips, self._task.posed.member, self._task.problem.units)
