"""Measure plans' true loss and keep the best, the uniform one included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..allocator import DropKind, Guard, Measured, Plan
from ..network import Data, Network, float_logits, measure_samples
from .drop import measured_drop
from .finalize import Finalized

__all__ = ["Candidate", "Finalize", "Judged", "judge", "measure_finalized"]

Finalize = Callable[[Plan], Finalized]


@dataclass(frozen=True)
class Candidate:
    """A plan, its weights and its measured quality."""

    plan: Plan
    finalized: Finalized
    quality: Measured


@dataclass(frozen=True)
class Judged:
    """The plan that is kept, and all that competed.

    Attributes
    ----------
    kept : Candidate
        Of least measured loss; its plan carries the measurement and the guard.
    plans : tuple of Candidate
        The solved plans, in the order given.
    uniform : Candidate or None
        The best uniform plan within the budget.
    """

    kept: Candidate
    plans: tuple[Candidate, ...]
    uniform: Candidate | None


def judge(
    network: Network, plans: Sequence[Plan], uniform: Plan | None, data: Data, finalize: Finalize
) -> Judged:
    """Finalize and measure every plan and the best uniform one; keep the one of least true loss.

    Parameters
    ----------
    plans : sequence of Plan
        Solved for one budget, at least one.
    uniform : Plan, optional
        The best uniform plan within the same budget, where one fits.
    data : Data
        Where the loss is measured.
    finalize : callable
        From a plan to its integer weights.
    """
    reference = float_logits(network, data)
    solved = tuple(_candidate(network, plan, data, reference, finalize) for plan in plans)
    best = min(solved, key=lambda candidate: candidate.quality.loss)
    if uniform is None:
        return Judged(_kept(best, None), solved, None)
    other = _candidate(network, uniform, data, reference, finalize)
    guard = Guard(
        option=uniform.uniform_name(),
        uniform_loss=other.quality.loss,
        plan_loss=best.quality.loss,
        kept="uniform" if other.quality.loss < best.quality.loss else "plan",
        data=data.name,
    )
    return Judged(_kept(other if guard.kept == "uniform" else best, guard), solved, other)


def measure_finalized(
    network: Network,
    finalized: Finalized,
    data: Data,
    reference: Tensor | None = None,
    *,
    drop: DropKind | None = None,
) -> Measured:
    """Quality of finalized weights on some data, as documents keep it.

    Parameters
    ----------
    reference : Tensor, optional
        `float_logits` of the same data, where at hand.
    drop : DropKind, optional
        Which drop to state with its paired interval; none without.

    Raises
    ------
    InputError
        The data has no labels, and the drop needs them.
    """
    reference = float_logits(network, data) if reference is None else reference
    samples = measure_samples(network, data, finalized.tensors(network), reference)
    quality = samples.quality()
    return Measured(
        loss=quality.loss,
        standard_error=quality.standard_error,
        samples=quality.samples,
        data=data.name,
        accuracy=quality.accuracy,
        float_accuracy=quality.float_accuracy,
        perplexity=quality.perplexity,
        float_perplexity=quality.float_perplexity,
        context=None if data.inputs.is_floating_point() else data.inputs.shape[1],
        drop=measured_drop(drop, samples) if drop is not None else None,
    )


def _candidate(network: Network, plan: Plan, data: Data, reference: Tensor, finalize: Finalize) -> Candidate:
    finalized = finalize(plan)
    return Candidate(plan, finalized, measure_finalized(network, finalized, data, reference))


def _kept(candidate: Candidate, guard: Guard | None) -> Candidate:
    plan = candidate.plan.model_copy(update={"measured": candidate.quality, "guard": guard})
    return Candidate(plan, candidate.finalized, candidate.quality)
