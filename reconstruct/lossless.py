"""The smallest plan whose measured drop stays within a tolerance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ..allocator import Frontier, Plan, Search, SearchOutcome, Tolerance, Trial
from ..errors import InfeasibleError, NotFiniteError
from ..network import Data, Network, float_logits
from .judge import Candidate, Finalize, measure_finalized
from .least import Tried, budget_of, least_within

__all__ = ["Way", "find_least"]

SMALLER_UNIFORM = 2
"""Most uniform plans, each smaller than the best so far, that are measured after the search."""


@dataclass(frozen=True)
class Way:
    """A way to choose: a unit of choice with what it promises.

    Attributes
    ----------
    frontier : Frontier
        Predicted loss over the bits of the quantized weights.
    least : int
        Bits that some plan takes, at the least; the frontier may begin above it.
    solve : callable
        From such bits to the plan within them.
    """

    frontier: Frontier
    least: int
    solve: Callable[[int], Plan]

    def reaches(self, bits: int) -> bool:
        """Whether some plan takes so few bits."""
        return bits >= self.least

    def bound(self, bits: int) -> float:
        """Predicted loss at so many bits."""
        return self.frontier.bound(max(bits, int(self.frontier.cost[0])))


def find_least(
    network: Network,
    data: Data,
    tolerance: Tolerance,
    ways: Sequence[Way],
    finalize: Finalize,
    *,
    uniform: Callable[[int], Plan | None] = lambda bits: None,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> Candidate:
    """The plan of least size whose measured drop is within a tolerance, by about a dozen true evaluations.

    At the first budget all ways are measured, and that of least loss goes on, of those within the tolerance
    where there are any: below the smallest of these, since nothing larger can be the answer. Twelve
    evaluations at most find where its frontier meets the tolerance, to within 1% of the size. A uniform plan
    that is smaller than what was found, and within the tolerance all the same, takes its place.

    Parameters
    ----------
    data : Data
        Where drops are measured; must have what the tolerance needs, see `can_measure`.
    ways : sequence of Way
        At least one.
    finalize : callable
        From a plan to its integer weights.
    uniform : callable, optional
        From bits to the best plan within them that gives every layer one option, where there is one.
    on_trial : callable, optional
        Told every evaluation when it is done.

    Returns
    -------
    Candidate
        Its plan carries the measurement and the search.

    Raises
    ------
    InfeasibleError
        No plan was measured within the tolerance; names the best that was.
    """
    trials = _Trials(network, data, tolerance, finalize, on_trial, float_logits(network, data))
    way, begin = _best_way(ways, tolerance, trials)
    greatest = int(way.frontier.cost[-1])
    found = least_within(
        lambda bits: trials.attempt(bits, way.solve(bits)),
        way.bound,
        least=way.least,
        greatest=greatest,
        limit=tolerance.value,
        first_loss=tolerance.first_guess(),
        begin=begin,
    )
    outcome = found.outcome
    for _ in range(SMALLER_UNIFORM):
        most = trials.best.bits if trials.best is not None else greatest + 1
        rival = uniform(most - 1)
        if rival is None or weight_bits(rival) >= most or rival.assignment in trials.known:
            break
        trial = trials.measure(rival, f"uniform {rival.main_option()}")
        if trial is None or not trial.within:
            break
        outcome = SearchOutcome.UNIFORM
    if trials.best is None:
        raise InfeasibleError(_out_of_reach(tolerance, data, trials.done))
    candidate = trials.best.candidate
    search = Search(
        limit=str(tolerance),
        data=data.name,
        samples=candidate.quality.samples,
        outcome=outcome,
        trials=tuple(trials.done),
    )
    plan = candidate.plan.model_copy(update={"measured": candidate.quality, "search": search})
    return Candidate(plan, candidate.finalized, candidate.quality)


def weight_bits(plan: Plan) -> int:
    """Bits of the quantized weights with their overheads."""
    return plan.complexity.size_bits - plan.complexity.fixed_bits


@dataclass(frozen=True)
class _Best:
    """The smallest plan within the tolerance so far, the only one whose weights are kept."""

    bits: int
    candidate: Candidate


@dataclass
class _Trials:
    """Measured plans; each assignment is measured once."""

    network: Network
    data: Data
    tolerance: Tolerance
    finalize: Finalize
    on_trial: Callable[[Trial], None]
    reference: Tensor
    done: list[Trial] = field(default_factory=list)
    known: dict[str, Trial] = field(default_factory=dict)
    best: _Best | None = None

    def attempt(self, budget_bits: int, plan: Plan) -> Tried[Trial | None]:
        trial = self.known.get(plan.assignment) or self.measure(plan, f"per {plan.unit}")
        drop = math.inf if trial is None else trial.drop.value
        return Tried(budget_bits, weight_bits(plan), drop, trial)

    def measure(self, plan: Plan, name: str) -> Trial | None:
        """None where the network's output is not finite: such a plan is outside every limit."""
        try:
            finalized = self.finalize(plan)
            quality = measure_finalized(
                self.network, finalized, self.data, self.reference, drop=self.tolerance.kind
            )
        except NotFiniteError:
            return None
        assert quality.drop is not None
        bits = weight_bits(plan)
        trial = Trial(
            name=name,
            weight_bits=bits,
            average_bits=plan.complexity.average_bits,
            loss=quality.loss,
            drop=quality.drop,
            within=quality.drop.value <= self.tolerance.value,
        )
        self.done.append(trial)
        self.known[plan.assignment] = trial
        if trial.within and (self.best is None or bits < self.best.bits):
            self.best = _Best(bits, Candidate(plan, finalized, quality))
        self.on_trial(trial)
        return trial


def _best_way(
    ways: Sequence[Way], tolerance: Tolerance, trials: _Trials
) -> tuple[Way, Tried[Trial | None] | None]:
    """The way that goes on, and what is known at the budget where the first one would begin its search.

    That is the smallest plan within the tolerance, of whichever way, or else the plan of the way that goes
    on; None of a single way.
    """
    if len(ways) == 1:
        return ways[0], None
    ends = ways[0].frontier.cost
    bits = budget_of(ways[0].bound, tolerance.first_guess(), ways[0].least, int(ends[-1]))
    first = [(trials.attempt(bits, way.solve(bits)), way) for way in ways if way.reaches(bits)]

    def outside_and_loss(tried: Tried[Trial | None]) -> tuple[bool, float]:
        return (True, math.inf) if tried.item is None else (not tried.item.within, tried.item.loss)

    begin, best = min(first, key=lambda pair: outside_and_loss(pair[0]))
    within = [tried for tried, _ in first if tried.item is not None and tried.item.within]
    return best, min(within, key=lambda tried: tried.size_bits, default=begin)


def _out_of_reach(tolerance: Tolerance, data: Data, trials: list[Trial]) -> str:
    if not trials:
        return (
            f"no plan was measured within a drop of {tolerance} on {data.name}: the network's output is NaN "
            "or infinite at all bits that were tried; add larger options with --options"
        )
    best = min(trials, key=lambda trial: trial.drop.value)
    return (
        f"no plan was measured within a drop of {tolerance} on {data.name}: the best of {len(trials)} "
        f"measured has {best.drop.described()} at {best.average_bits:.3f} bits per weight. Allow more with "
        "--max-drop, or add larger options with --options"
    )
