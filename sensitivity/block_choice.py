"""Interactions of layers within blocks, solved exactly: a block is a unit whose options are its choices."""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

from ..allocator import MultiProblem, MultiSolution, solve_multi
from ..errors import InputError
from .joint import unit_factors
from .task import Task

__all__ = ["solve_blocks"]

MOST_CHOICES = 20_000
"""Of the options of one block's layers; more than four layers of seven options have."""


def solve_blocks(task: Task, time_limit_s: float | None = None) -> MultiSolution:
    """The choice of least loss with the interactions of layers that are in one block.

    With v the projections of the options, as `unit_factors` has them, minimises

        sum over blocks B of 1/2 sum_r (sum_{l in B} v[r, l, o_l])^2

    All choices of a block's layers are the options of one unit, whose losses add up over blocks. Layers that
    are tied to those of another block join the two.

    Parameters
    ----------
    task : Task
        Per layer, with Fisher scores.
    time_limit_s : float, optional
        Of the exact solver.

    Raises
    ------
    InputError
        The unit is not the layer, the profile does not say which layers are in one block, or a block has too
        many choices.

    References
    ----------
    Li et al., "BRECQ", ICLR 2021, section 3.4, where a genetic algorithm searches.
    """
    if task.unit != "layer":
        raise InputError(
            f"--objective block counts interactions of whole layers, and the unit is {task.unit}; solve with "
            "--unit layer, or --objective joint"
        )
    groups = _groups(task)
    factors = unit_factors(task).astype(np.float64)
    tables = [_choices(task, group) for group in groups]
    most = max(len(table) for table in tables)
    problem = task.problem
    loss, allowed = np.zeros((len(groups), most)), np.zeros((len(groups), most), np.bool_)
    costs = np.zeros((len(problem.budgets), len(groups), most), np.int64)
    for row, (group, table) in enumerate(zip(groups, tables, strict=True)):
        loss[row, : len(table)] = _block_losses(factors[group], table)
        costs[:, row, : len(table)] = problem.costs[:, group, table].sum(2)
        allowed[row, : len(table)] = True
    names = problem.unit_names
    blocks = MultiProblem(
        loss,
        costs,
        problem.budgets,
        problem.budget_names,
        allowed,
        None if names is None else tuple(" + ".join(names[unit] for unit in group) for group in groups),
        None,
        problem.forms,
        problem.scales,
    )
    found = solve_multi(blocks, time_limit_s=time_limit_s)
    choice = np.zeros(problem.units, np.intp)
    for group, table, index in zip(groups, tables, found.choice.tolist(), strict=True):
        choice[group] = table[index]
    certificate = found.certificate.model_copy(update={"objective_form": "block"})
    return MultiSolution(choice, found.loss, found.costs, certificate)


def _groups(task: Task) -> list[list[int]]:
    """Units that are in one block, or are joined by ties across blocks."""
    posed = task.posed
    unit_of = posed.member[posed.starts[:-1]].tolist()
    group_of = list(range(task.problem.units))
    blocks: dict[int, set[int]] = {}
    for layer, unit in zip(task.profile.layers, unit_of, strict=True):
        if layer.block is None:
            raise InputError(
                f"the profile does not say which block layer '{layer.name}' is in, which --objective block "
                "needs; profile again, or solve with another objective"
            )
        blocks.setdefault(layer.block, set()).add(unit)
    for units in blocks.values():
        joined = {group_of[unit] for unit in units}
        group_of = [min(joined) if group in joined else group for group in group_of]
    members: dict[int, list[int]] = {}
    for unit, group in enumerate(group_of):
        members.setdefault(group, []).append(unit)
    return list(members.values())


def _choices(task: Task, group: list[int]) -> NDArray[np.intp]:
    """Every choice of a group's units, (choices, units)."""
    problem = task.problem
    options = np.arange(problem.loss.shape[1])
    may = [options if problem.allowed is None else np.flatnonzero(problem.allowed[unit]) for unit in group]
    count = np.prod([len(each) for each in may], dtype=np.float64)
    if count > MOST_CHOICES:
        names = problem.unit_names or tuple(map(str, range(problem.units)))
        raise InputError(
            f"a block of {len(group)} layers, '{names[group[0]]}' to '{names[group[-1]]}', has {count:,.0f} "
            f"choices, and --objective block takes at most {MOST_CHOICES:,} for a block; give fewer "
            "--options, or solve with --objective joint"
        )
    return np.array(list(product(*(each.tolist() for each in may))), np.intp)


def _block_losses(factors: NDArray[np.float64], table: NDArray[np.intp]) -> NDArray[np.float64]:
    """Loss of every choice, from the projections of the block's units, (units, options, rows)."""
    units, options, rows = factors.shape
    flat = factors.reshape(-1, rows)
    gram = flat @ flat.T / 2
    place = table + options * np.arange(units)
    losses: NDArray[np.float64] = gram[place[:, :, None], place[:, None, :]].sum((1, 2))
    return losses
