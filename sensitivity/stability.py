"""Add calibration samples until the plans stop changing, measuring every sample once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..allocator import MultiSolution, average_budget, cost_range
from ..network import Data, Network
from ..quantizer import Option, Quantizer
from .coded import solve_coded
from .fisher import FisherScores, FisherSettings, score_fisher
from .measure import check_cut, make_profile, profile_fingerprint
from .merge import merge_scores
from .problems import pose
from .profile import Profile, ProfileArrays, Stability, StabilityRound
from .task import Task, pose_task
from .unused import unreached

__all__ = ["FIRST_SAMPLES", "MOST_REGRET", "measure_until_stable"]

FIRST_SAMPLES = 64
MOST_REGRET = 0.01
"""Loss by which the plans of before may exceed those of now, for the plans to count as stable."""
DEFAULT_BUDGETS = (0.25, 0.5, 0.75)
"""Places between the least and the greatest size that the options reach."""


@dataclass(frozen=True, eq=False)
class _Planned:
    """The choices of one round, one per budget."""

    tasks: tuple[Task, ...]
    choices: tuple[NDArray[np.intp], ...]

    @classmethod
    def of(cls, profile: Profile, arrays: ProfileArrays, budgets: Sequence[str], unit: str) -> _Planned:
        tasks = tuple(pose_task(profile, arrays, budget, unit) for budget in budgets)
        return cls(tasks, tuple(_strips(*solve_coded(task)) for task in tasks))

    def against(self, before: _Planned, samples: int) -> StabilityRound:
        """What the new samples changed."""
        compared = [
            _compare(task, old, new)
            for task, old, new in zip(self.tasks, before.choices, self.choices, strict=True)
        ]
        unchanged, regret = zip(*compared, strict=True)
        return StabilityRound(samples=samples, unchanged=min(unchanged), regret=max(regret))


def measure_until_stable(
    network: Network,
    data: Data,
    options: Sequence[Option],
    *,
    quantizer: Quantizer | None = None,
    settings: FisherSettings | None = None,
    budgets: Sequence[str] = (),
    unit: str = "channel",
    start: tuple[Profile, ProfileArrays] | None = None,
    store: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    on_round: Callable[[StabilityRound], None] | None = None,
) -> tuple[Profile, ProfileArrays]:
    """Fisher scores from as many samples as the plans need.

    Samples are doubled, only the new ones are measured, and the plans made before are judged by the new
    scores: once ``loss(plan of before) <= 1.01 loss(plan of now)`` at every budget, more samples have nothing
    more to say.

    Parameters
    ----------
    data : Data
        All samples that may be used.
    budgets : sequence of str
        One plan for each; default: three, spread evenly over the sizes that the options reach.
    unit : str
        What the plans choose options for.
    start : (Profile, ProfileArrays), optional
        Scores of the first n samples with the same settings, to go on from.
    store : Path, optional
        Folder for partial sums, from which an interrupted run goes on.
    on_round : callable, optional
        Told after every comparison.

    Returns
    -------
    Profile
        An ordinary one, of the first `profile.samples` samples; its `stability` says how it went, and whether
        all were used without the plans becoming stable.
    ProfileArrays

    Raises
    ------
    InputError
        As `measure_profile` and `solve_plan`.
    InfeasibleError
        A budget that no choice meets.
    """
    quantizer, settings = quantizer or Quantizer(), settings or FisherSettings()
    check_cut(network, "fisher", settings.cut)
    seconds = start[0].seconds.get("scores", 0.0) if start else 0.0
    scores = _scores_of(*start) if start else None
    before: _Planned | None = None
    rounds: list[StabilityRound] = []
    for count in _sample_counts(len(data), start[0].samples if start else None):
        part = data.part(slice(count))
        print_ = profile_fingerprint(network, part, options, quantizer, "fisher", settings)
        known = 0 if scores is None else scores.samples
        if count > known:
            began = time.perf_counter()
            added = score_fisher(
                network, data.part(slice(known, count)), options, quantizer,
                # The draws of a sample depend on the seed and its place, and no two shall have the same.
                replace(settings, seed=settings.seed + known),
                store=store / f"{known}-{count}" if store else None,
                key=f"{print_.text()} from {known}", on_progress=on_progress,
            )  # fmt: skip
            seconds += time.perf_counter() - began
            rows = settings.factor_rows
            scores = added if scores is None else merge_scores(scores, added, factor_rows=rows)
        assert scores is not None
        profile, stored = make_profile(network, part, options, quantizer, settings, scores, print_, seconds)
        assert stored is not None
        arrays = stored
        budgets = budgets or _spread_budgets(profile, arrays, unit)
        now = _Planned.of(profile, arrays, budgets, unit)
        if before is not None:
            rounds.append(now.against(before, count))
            if on_round is not None:
                on_round(rounds[-1])
            if rounds[-1].regret <= MOST_REGRET:
                break
        before = now
    stability = Stability(
        unit=unit,
        budgets=tuple(budgets),
        rounds=tuple(rounds),
        stable=bool(rounds) and rounds[-1].regret <= MOST_REGRET,
    )
    return profile.model_copy(update={"stability": stability}), arrays


def _sample_counts(total: int, first: int | None) -> list[int]:
    """Numbers of samples to plan with: from `first`, or 64 or half of them all, doubling; at last all."""
    counts = [max(1, min(FIRST_SAMPLES, total // 2)) if first is None else first]
    while 2 * counts[-1] <= total:
        counts.append(2 * counts[-1])
    return counts if counts[-1] >= total else [*counts, total]


def _scores_of(profile: Profile, arrays: ProfileArrays) -> FisherScores:
    """The scores that a profile was made from."""
    # Floors are found anew once more samples are seen.
    floor = unreached(arrays.channel_loss, arrays.channel_error)[:, None]
    return FisherScores(
        profile.samples,
        arrays.projections,
        arrays.channel_loss.where(~floor, 0.0),
        arrays.channel_error.where(~floor, 0.0),
        None if arrays.factors is None else arrays.factors.float(),
    )


def _spread_budgets(profile: Profile, arrays: ProfileArrays, unit: str) -> tuple[str, ...]:
    posed = pose(profile, arrays, unit)
    least, greatest = posed.least_bits, cost_range(posed.problem).greatest
    bits = (least + int(share * (greatest - least)) for share in DEFAULT_BUDGETS)
    return tuple(average_budget(each, profile.weight_count) for each in bits)


def _strips(task: Task, solution: MultiSolution) -> NDArray[np.intp]:
    """Option of every strip."""
    return solution.choice[task.posed.member]


def _compare(task: Task, old: NDArray[np.intp], new: NDArray[np.intp]) -> tuple[float, float]:
    """Share of the weights whose option is unchanged, and regret of the old choice."""
    posed = task.posed
    counts = np.diff(posed.starts)
    weights = np.repeat([layer.channels * layer.fan_in for layer in task.profile.layers] / counts, counts)
    same = old == new
    best, former = (float(task.problem.loss_of(task.choice_of_strips(each)).sum()) for each in (new, old))
    excess = former - best
    return float(weights[same].sum() / weights.sum()), max(0.0, excess / best) if best > 0 else 0.0
