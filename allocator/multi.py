"""A choice under several budgets at once: one option for every unit, least total loss within every budget."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .budget import AmountForm
from .choices import MAX_TOTAL_COST, Choices, check_costs, check_losses, whole_budget, whole_costs
from .problem import CostRange, Problem

__all__ = ["MultiProblem", "cost_ranges", "possible_options", "tightened"]


@dataclass(frozen=True, eq=False)
class MultiProblem(Choices):
    """Choose exactly one option for every unit: least total loss, every total cost within its budget.

    A multiple-choice knapsack in several dimensions,
    ``minimise sum_u loss[u, o_u]  subject to  sum_u costs[k, u, o_u] <= budgets[k] for every k``.

    Parameters
    ----------
    loss : float64 array (units, options)
        Loss of each option; negative values and values that rise with the costs are welcome.
    costs : int64 array (budgets, units, options)
        Cost of each option in each measure, at least 0, in whole units of that measure.
    budgets : tuple of int
        Limit on each total cost.
    budget_names : tuple of str
        What each budget limits, such as ``("size", "macs")``; shadow prices and messages use the names.
    allowed : bool array (units, options), optional
        False forbids an option to a unit; what `loss` and `costs` hold there is ignored. Default: none is.
    unit_names, option_names : tuple of str, optional
        For messages; units are layers or channels.
    forms : tuple of AmountForm, optional
        How messages write amounts of each measure. Default: as whole numbers.
    scales : tuple of int, optional
        Whole numbers per unit of each measure, by which shadow prices of the unit are more. Default: 1 each.

    Raises
    ------
    InputError
        What `Problem` refuses, for any of the measures; no budget, budgets without a name each, or two of one
        name.
    """

    loss: NDArray[np.float64]
    costs: NDArray[np.int64]
    budgets: tuple[int, ...]
    budget_names: tuple[str, ...]
    allowed: NDArray[np.bool_] | None = None
    unit_names: tuple[str, ...] | None = None
    option_names: tuple[str, ...] | None = None
    forms: tuple[AmountForm, ...] | None = None
    scales: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "loss", np.asarray(self.loss, dtype=np.float64))
        object.__setattr__(self, "budget_names", tuple(self.budget_names))
        object.__setattr__(self, "costs", whole_costs(self.costs, "each budget's unit"))
        if self.allowed is not None:
            object.__setattr__(self, "allowed", np.asarray(self.allowed, dtype=np.bool_))
        self._check_budgets()
        check_losses(self)
        for name, cost in zip(self.budget_names, self.costs, strict=True):
            check_costs(self, cost, f"of '{name}'")

    def _check_budgets(self) -> None:
        names = self.budget_names
        if not names or len(names) != len(self.budgets) or len(names) != len(self.costs):
            raise InputError(
                f"{len(self.budgets)} budgets, {len(names)} names of budgets and costs of shape "
                f"{self.costs.shape} are given; give one budget, one name and (units, options) costs for each"
            )
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InputError(f"two budgets are named '{twice[0]}'; give every budget a name of its own")
        budgets = (
            whole_budget(budget, f"'{name}'") for name, budget in zip(names, self.budgets, strict=True)
        )
        object.__setattr__(self, "budgets", tuple(budgets))

    def amount(self, index: int, whole: int) -> str:
        """How messages write a cost in one of the measures."""
        return self.forms[index].text(whole) if self.forms else f"{whole:,}"

    @property
    def limits(self) -> NDArray[np.int64]:
        """The budgets as 64-bit integers, (budgets,); what is beyond any total cost is cut off."""
        return np.array([min(budget, MAX_TOTAL_COST) for budget in self.budgets], np.int64)

    def costs_of(self, choice: NDArray[np.intp]) -> NDArray[np.int64]:
        """Total costs of a choice, (budgets,)."""
        totals: NDArray[np.int64] = self.costs[:, np.arange(self.units), choice].sum(axis=1)
        return totals

    def within(self, choice: NDArray[np.intp]) -> bool:
        """Whether every total cost of a choice is within its budget."""
        return all(cost <= budget for cost, budget in zip(self.costs_of(choice), self.budgets, strict=True))

    def single(self, index: int) -> Problem:
        """The problem of one of the budgets alone."""
        return Problem(
            self.loss,
            self.costs[index],
            self.budgets[index],
            self.allowed,
            self.unit_names,
            self.option_names,
        )


def cost_ranges(problem: MultiProblem) -> tuple[CostRange, ...]:
    """Least and greatest total cost in each measure over all allowed choices, whatever the budgets."""
    least, greatest = _extremes(problem)
    return tuple(
        CostRange(int(low), int(high))
        for low, high in zip(least.sum(axis=1), greatest.sum(axis=1), strict=True)
    )


def possible_options(problem: MultiProblem) -> NDArray[np.bool_]:
    """Allowed options that break no budget when all other units cost their least, (units, options).

    Every budget must be at least the least total cost.
    """
    least, greatest = _extremes(problem)
    lowest, most = least.sum(axis=1), greatest.sum(axis=1)
    budgets = [min(budget, int(limit)) for budget, limit in zip(problem.budgets, most, strict=True)]
    room = np.array(budgets, np.int64) - lowest
    possible: NDArray[np.bool_] = (problem.costs <= (least + room[:, None])[:, :, None]).all(axis=0)
    return possible if problem.allowed is None else possible & problem.allowed


def tightened(problem: MultiProblem) -> MultiProblem:
    """The same choices within the budgets, said more tightly.

    Only `possible_options` are allowed, which every unit must have, and no budget is above the greatest total
    cost. Losses and costs of forbidden options are 0.
    """
    possible = possible_options(problem)
    budgets = tuple(
        min(budget, span.greatest) for budget, span in zip(problem.budgets, cost_ranges(problem), strict=True)
    )
    if possible.all():
        return replace(problem, budgets=budgets)
    # What forbidden options hold may be no number; from here on they are calculated with and masked.
    loss, costs = np.where(possible, problem.loss, 0.0), np.where(possible, problem.costs, 0)
    return replace(problem, loss=loss, costs=costs, budgets=budgets, allowed=possible)


def _extremes(problem: MultiProblem) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Least and greatest cost of each unit, (budgets, units)."""
    if problem.allowed is None:
        return problem.costs.min(axis=2), problem.costs.max(axis=2)
    least = np.where(problem.allowed, problem.costs, MAX_TOTAL_COST).min(axis=2)
    return least, np.where(problem.allowed, problem.costs, 0).max(axis=2)
