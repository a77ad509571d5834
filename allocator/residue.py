"""What prices leave undecided under several budgets, and the exact optimum of the relaxation from it.

As in `core`, at prices p every unit has a *base*, its option of least priced loss, and an option's excess is
what it adds to that. For every choice

    loss(choice) - value(p) = sum_u excess[u, o_u] + sum_k p_k (budgets[k] - costs[k](choice)),

and the right side is the excess of the choice. Few options are close to their base; those decide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .core import ROUNDING
from .dual import PricedChoice, choose_at
from .hull import chunks
from .multi import MultiProblem

__all__ = ["Relaxation", "Residue", "excess_of", "residue_at", "sift"]

FIRST_ENTRIES = 3000
"""Options beside the bases in the first linear programme; twice as many in each that follows."""
MOST_ROUNDS = 12
PRICE_LIMIT = 8.0
"""Most that a price may grow by in one linear programme."""
AGREEMENT = 1e-10
"""Sifting ends when bound and relaxation agree to this part of the total magnitude of the losses."""


@dataclass(frozen=True, eq=False)
class Residue:
    """Options other than the bases, relative to them; arrays over entries, grouped by unit.

    Parameters
    ----------
    priced : PricedChoice
        Prices, and the bases as its choice.
    unit, option : int array (entries,)
        Which option of which unit.
    costs : int64 array (budgets, entries)
        Costs that the option adds to the base.
    excess : float64 array (entries,)
        Priced loss that the option adds to the base, rounding taken off, at least 0.
    rounding : float
        How much less than its excess a choice may have, from rounding.
    """

    priced: PricedChoice
    unit: NDArray[np.intp]
    option: NDArray[np.intp]
    costs: NDArray[np.int64]
    excess: NDArray[np.float64]
    rounding: float

    @property
    def slack(self) -> NDArray[np.int64]:
        """Budgets minus the costs of the bases, (budgets,)."""
        return -self.priced.over

    def choice(self, taken: NDArray[np.intp]) -> NDArray[np.intp]:
        """The bases with these entries in their place."""
        choice = self.priced.choice.copy()
        choice[self.unit[taken]] = self.option[taken]
        return choice


def residue_at(
    problem: MultiProblem,
    priced: PricedChoice,
    *,
    below: float = math.inf,
    closest: int | None = None,
    always: PricedChoice | None = None,
) -> Residue:
    """The options that matter around the bases.

    Parameters
    ----------
    problem : MultiProblem
        The problem.
    priced : PricedChoice
        From `choose_at`, with the losses.
    below : float
        Only options of less excess.
    closest : int, optional
        Only so many of those whose excess is least against what the prices say their change is worth.
    always : PricedChoice, optional
        The options of this choice are kept whatever the two limits above.
    """
    prices = priced.prices
    columns: list[tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]] = []
    rounding = 0.0
    for part in chunks(problem.units):
        here, base = np.arange(part.stop - part.start), priced.choice[part]
        loss = problem.loss[part] - problem.loss[part][here, base][:, None]
        priced_change, worth = loss.copy(), np.abs(loss)
        for price, cost in zip(prices, problem.costs, strict=True):
            if price:
                change = price * (cost[part] - cost[part][here, base][:, None])
                priced_change += change
                worth += np.abs(change)
        kept = np.ones(loss.shape, np.bool_) if problem.allowed is None else problem.allowed[part].copy()
        kept[here, base] = False
        # One more rounding for every budget.
        excess = priced_change - ROUNDING * (1 + len(prices)) * worth
        rounding -= float(np.minimum(np.where(kept, excess, 0.0), 0.0).min(axis=1).sum())
        excess = np.maximum(excess, 0.0)
        near = kept & (excess < below)
        if always is not None:
            near[here, always.choice[part]] = kept[here, always.choice[part]]
        unit, option = np.nonzero(near)
        distance = excess[unit, option] / np.maximum(worth[unit, option], np.finfo(np.float64).tiny)
        if always is not None:
            distance[always.choice[part][unit] == option] = -1.0
        columns.append((unit + part.start, option, excess[unit, option], distance))
    unit, option, excess, distance = (np.concatenate(column) for column in zip(*columns, strict=True))
    if closest is not None and len(unit) > closest:
        near = np.sort(np.argpartition(distance, closest)[:closest])
        unit, option, excess = unit[near], option[near], excess[near]
    costs = problem.costs[:, unit, option] - problem.costs[:, unit, priced.choice[unit]]
    return Residue(priced, unit, option, costs, excess, rounding)


def excess_of(problem: MultiProblem, priced: PricedChoice, choice: NDArray[np.intp]) -> tuple[float, float]:
    """Excess of a choice within the budgets, at least 0, and the greatest error of it from rounding."""
    moved = np.flatnonzero(choice != priced.choice)
    loss = problem.loss[moved, choice[moved]] - problem.loss[moved, priced.choice[moved]]
    terms = [*loss, *(-priced.prices * priced.over)]
    return max(math.fsum(terms), 0.0), ROUNDING * math.fsum(np.abs(terms))


@dataclass(frozen=True, eq=False)
class Relaxation:
    """Optimum of the linear relaxation, options mixed in fractions.

    Parameters
    ----------
    priced : PricedChoice
        The best prices found, and the choice at them; its value is the bound.
    residue : Residue
        Of the last linear programme.
    shares : float64 array (entries,)
        Share that each entry of `residue` has in the mix; a unit's base has the rest.
    """

    priced: PricedChoice
    residue: Residue
    shares: NDArray[np.float64]


def sift(problem: MultiProblem, priced: PricedChoice) -> Relaxation:
    """Solve the relaxation exactly, from near-best prices.

    A linear programme over the options that are close to their base gives new prices; where some other
    option is better at those, it enters, and more that are close ("sifting", Bixby et al., Operations
    Research 40, 1992). The bound is evaluated over all options, so it owes nothing to the programme's
    tolerances.
    """
    best, closest, outside = priced, FIRST_ENTRIES, None
    for _ in range(MOST_ROUNDS):
        residue = residue_at(problem, best, closest=closest, always=outside)
        prices, relaxed, shares, bounded = _mix(residue)
        found = choose_at(problem, prices)
        reached = best.value + relaxed
        magnitude = math.fsum(np.abs(problem.loss_of(best.choice)))
        outside = found
        if found.value > best.value:
            best, outside = found, best
        if reached - best.value <= AGREEMENT * magnitude and not bounded:
            break
        closest *= 2
    return Relaxation(best, residue, shares)


def _mix(residue: Residue) -> tuple[NDArray[np.float64], float, NDArray[np.float64], bool]:
    """Best mix of the entries, priced: the prices that it implies, its excess, the shares.

    Also whether a price met its limit, a multiple of what it was, which keeps the programme feasible.
    """
    from scipy import sparse
    from scipy.optimize import linprog

    prices, count = residue.priced.prices, len(residue.unit)
    # In the scale of what can change, the solver's tolerances are small.
    size = np.maximum(np.abs(residue.costs).max(axis=1, initial=1), np.abs(residue.slack)).astype(np.float64)
    worth = prices * size
    scale = float(residue.excess.max(initial=0.0)) or float(worth.max()) or 1.0
    most = PRICE_LIMIT * np.maximum(worth, 1e-3 * (worth.max() or scale))
    units, row = np.unique(residue.unit, return_inverse=True)
    budget_rows = sparse.hstack(
        [
            sparse.csr_array(residue.costs / size[:, None]),
            sparse.eye_array(len(prices)),
            -sparse.eye_array(len(prices)),
        ]
    )
    one_each = sparse.csr_array(
        (np.ones(count), (row, np.arange(count))), shape=(len(units), count + 2 * len(prices))
    )
    result = linprog(
        np.concatenate([residue.excess, worth, most - worth]) / scale,
        A_ub=one_each,
        b_ub=np.ones(len(units)),
        A_eq=budget_rows,
        b_eq=residue.slack / size,
        method="highs-ds",
        options={"dual_feasibility_tolerance": 1e-10, "primal_feasibility_tolerance": 1e-10},
    )
    if result.x is None:
        return prices, math.inf, np.zeros(count), False
    implied = np.clip(worth - scale * result.eqlin.marginals, 0.0, most)
    beyond = result.x[count + len(prices) :]
    return implied / size, scale * float(result.fun), result.x[:count], bool((beyond > 1e-9).any())
