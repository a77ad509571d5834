"""Measure plans' true loss and keep the best, the uniform one included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..allocator import DropKind, Guard, Measured, Plan
from ..errors import NotFiniteError
from ..network import Data, Network, float_logits, measure_samples
from .drop import measured_drop
from .finalize import Finalized

__all__ = ["Candidate", "Finalize", "Judged", "judge", "measure_competing", "measure_finalized"]

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
        The solved plans, in the order given, without those whose output is not finite.
    uniform : Candidate or None
        The best uniform plan within the budget, where its output is finite.
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
        Solved for one budget, at least one where there is no uniform plan.
    uniform : Plan, optional
        The best uniform plan within the same budget, where one fits.
    data : Data
        Where the loss is measured.
    finalize : callable
        From a plan to its integer weights.

    Raises
    ------
    NotFiniteError
        The output of none of the quantized networks is finite.
    """
    reference = float_logits(network, data)
    failed: list[NotFiniteError] = []

    def finite(plan: Plan) -> list[Candidate]:
        try:
            finalized = finalize(plan)
            return [Candidate(plan, finalized, measure_finalized(network, finalized, data, reference))]
        except NotFiniteError as error:
            failed.append(error)
            return []

    solved = tuple(candidate for plan in plans for candidate in finite(plan))
    best = min(solved, key=lambda candidate: candidate.quality.loss, default=None)
    other = next(iter(finite(uniform) if uniform is not None else []), None)
    if best is None or other is None:
        alone = best or other
        if alone is None:
            raise failed[0]
        return Judged(_kept(alone, None), solved, other)
    guard = Guard(
        option=other.plan.uniform_name(),
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
    NotFiniteError
        The output of the quantized network is NaN or infinite.
    """
    reference = float_logits(network, data) if reference is None else reference
    samples = measure_samples(network, data, finalized.tensors(network), reference)
    wrong = len(samples.loss) - int(samples.loss.isfinite().sum())
    if wrong:
        raise NotFiniteError(
            f"the network's output is NaN or infinite at these bits on {wrong:,} of {len(samples.loss):,} "
            f"samples of '{data.name}'; raise the budget, or forbid the fewest bits"
        )
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


def measure_competing(
    network: Network, kept: Finalized, others: Sequence[Finalized], data: Data
) -> list[Measured | None]:
    """Quality of what is kept and of what competed with it; None for one of these that is not finite.

    Raises
    ------
    NotFiniteError
        The output of what is kept is NaN or infinite.
    """
    reference = float_logits(network, data)
    found: list[Measured | None] = [measure_finalized(network, kept, data, reference)]
    for other in others:
        try:
            found.append(measure_finalized(network, other, data, reference))
        except NotFiniteError:
            found.append(None)
    return found


def _kept(candidate: Candidate, guard: Guard | None) -> Candidate:
    plan = candidate.plan.model_copy(update={"measured": candidate.quality, "guard": guard})
    return Candidate(plan, candidate.finalized, candidate.quality)
