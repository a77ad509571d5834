"""The allocation problem that scores pose, at any unit of choice and under constraints."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..allocator import (
    AmountForm,
    CodeSavings,
    Constraints,
    CostTable,
    MultiProblem,
    Problem,
    Rules,
    Unit,
    WholeCosts,
    cost_range,
    parse_unit,
)
from ..errors import InputError
from ..quantizer import channel_code_bits
from .facts import LayerFacts, allowed_options, facts_of_profile, refuse_tensor_steps, rules_of
from .pooled import pooled_scores
from .profile import Profile, ProfileArrays
from .units import UnitRows

__all__ = ["Posed", "layer_scores", "pose", "pose_facts", "problem_of"]


@dataclass(frozen=True, eq=False)
class Posed:
    """An allocation problem, and the way back from its units to the strips of every layer.

    Attributes
    ----------
    problem : Problem
        Loss and bits of every unit and option. A unit is a layer, an output channel, a tile of channels, a
        strip of inputs, or a group of tied layers.
    tables : tuple of CostTable
        Further quantities, with the costs of the layers and options that are allowed.
    further : tuple of int64 array (units, options)
        The same of every unit, in whole numbers: never less than ``scale * cost``.
    scales : tuple of int
        Whole numbers per unit of each quantity.
    fixed : tuple of int
        What layers that stay float take of each quantity, whatever is chosen, in these whole numbers.
    member : int array (strips of all layers,)
        Unit of every strip, layers in network order.
    starts : int array (layers + 1,)
        Where each layer's strips begin in `member`.
    whole : tuple of bool
        Layers that are one unit, alone or with others that are tied to them.
    codes : tuple of int
        Bits in which the units of every layer say which option they have; 0 for a layer that is one unit.
    rules : Rules
        What the constraints mean for the layers.
    """

    problem: Problem
    tables: tuple[CostTable, ...]
    further: tuple[NDArray[np.int64], ...]
    scales: tuple[int, ...]
    fixed: tuple[int, ...]
    member: NDArray[np.intp]
    starts: NDArray[np.intp]
    whole: tuple[bool, ...]
    codes: tuple[int, ...]
    rules: Rules

    @property
    def coded(self) -> tuple[int, ...]:
        """Layers that store option codes, which they need not where they come out with one option."""
        return tuple(row for row, bits in enumerate(self.codes) if bits)

    def savings(self, costs: Sequence[int]) -> CodeSavings:
        """What the coded layers save with one option, of budgets on these costs, see `under`."""
        rows = np.array(self.coded, np.intp)
        begin, last = self.member[self.starts[rows]], self.member[self.starts[rows + 1] - 1]
        codes = np.array(self.codes, np.int64)[rows]
        return CodeSavings(begin, last + 1, np.stack([codes * (cost == 0) for cost in costs]))

    @property
    def least_bits(self) -> int:
        """The least that any choice stores, with one option for a layer or several."""
        problem = self.under(["size"], [0], [0])
        saved = self.savings([0]).relief(replace(problem, loss=np.zeros_like(problem.loss)), np.ones(1))
        return cost_range(self.problem).least - int(saved.clip(min=0.0).sum())

    def assigned(self, choice: NDArray[np.intp]) -> list[list[str]]:
        """Option of every strip of every layer, from the option index of every unit."""
        names = np.array(self.problem.option_names, dtype=object)
        chosen = names[choice[self.member]]
        return [list(chosen[a:b]) for a, b in zip(self.starts[:-1], self.starts[1:], strict=True)]

    def under(
        self,
        names: Sequence[str],
        costs: Sequence[int],
        budgets: Sequence[int],
        forms: Sequence[AmountForm] | None = None,
    ) -> MultiProblem:
        """The problem under several budgets.

        Parameters
        ----------
        names : sequence of str
            What messages and shadow prices call the budgets.
        costs : sequence of int
            What each limits: 0 the bits, k + 1 the table k.
        budgets : sequence of int
            In bits, or in the whole numbers of the table.
        forms : sequence of AmountForm, optional
            How messages write them.
        """
        every, scales = (self.problem.cost, *self.further), (1, *self.scales)
        return MultiProblem(
            self.problem.loss,
            np.stack([every[index] for index in costs]),
            tuple(budgets),
            tuple(names),
            self.problem.allowed,
            self.problem.unit_names,
            self.problem.option_names,
            None if forms is None else tuple(forms),
            tuple(scales[index] for index in costs),
        )


def pose(
    profile: Profile,
    arrays: ProfileArrays | None,
    unit: str,
    budget_bits: int = 0,
    *,
    constraints: Constraints | None = None,
    tables: Sequence[CostTable] = (),
    plain: Collection[int] = (),
) -> Posed:
    """The problem of a profile, at a unit of choice and under constraints.

    A tied group is one unit, and its loss the sum of its layers' own scores; so is a layer that is one unit
    where others are not, such as one that a constraint leaves a single option.

    Parameters
    ----------
    arrays : ProfileArrays or None
        Needed wherever layers have several units.
    unit : str
        See `parse_unit`.
    budget_bits : int
        Limit on the bits of all quantized weights together.
    constraints : Constraints, optional
        Excluded layers are those that the profile does not have.
    plain : collection of int
        Layers that are to have one option, and then store no option codes; each is one unit.

    Raises
    ------
    InputError
        A unit that the profile has no scores for, constraints that name nothing or contradict each other,
        or a table without the costs that are needed.
    """
    parsed = parse_unit(unit)
    if parsed.kind != "layer":
        _check_scored(profile, arrays, parsed)
    posed = pose_facts(
        facts_of_profile(profile),
        profile.options,
        parsed,
        constraints or Constraints(),
        tables,
        layer_scores(profile),
        None if arrays is None else pooled_scores(profile, arrays),
        plain,
    )
    return replace(posed, problem=replace(posed.problem, budget=budget_bits))


def pose_facts(
    facts: Sequence[LayerFacts],
    options: Sequence[str],
    unit: Unit,
    constraints: Constraints,
    tables: Sequence[CostTable],
    layer_loss: NDArray[np.float64] | None = None,
    strip_loss: NDArray[np.float64] | None = None,
    plain: Collection[int] = (),
) -> Posed:
    """The problem of layers that need not be scored yet: what can be met needs no scores.

    Parameters
    ----------
    layer_loss : float64 array (layers, options), optional
        Loss of every option for the whole layer; default: 0.
    strip_loss : float64 array (strips of all layers, options), optional
        The same for every strip.
    plain : collection of int
        See `pose`.
    """
    rules = rules_of(facts, options, constraints)
    tables = tuple(table.restricted(allowed_options(facts, options, rules.allowed)) for table in tables)
    strips = [layer.cut.strips for layer in facts]
    costs = [WholeCosts.of(table, [layer.name for layer in facts], options, strips) for table in tables]
    starts = np.concatenate([[0], np.cumsum(strips)]).astype(np.intp)
    member, whole = np.empty(starts[-1], np.intp), []
    group_of = {row: group for group in rules.groups for row in group}
    codes = [0] * len(facts)
    units = UnitRows(len(costs))
    for row, layer in enumerate(facts):
        place = slice(starts[row], starts[row + 1])
        rows = list(group_of.get(row, (row,)))
        whole.append(len(rows) > 1 or _is_one_unit(layer, unit, rules.allowed[row]))
        if row != rows[0]:
            member[place] = member[starts[rows[0]]]
        elif whole[row]:
            member[place] = units.add(
                [" + ".join(facts[other].name for other in rows)],
                _total(layer_loss, rows, len(options)),
                np.sum([facts[other].size_bits for other in rows], axis=0)[None],
                [cost.layer[rows].sum(axis=0)[None] for cost in costs],
                rules.allowed[row],
            )
        else:
            refuse_tensor_steps(options, rules.allowed[row], unit)
            firsts = np.arange(0, layer.cut.strips, unit.tile)
            counts = np.diff(np.append(firsts, layer.cut.strips))[:, None]
            loss = np.zeros((len(firsts), len(options)))
            if strip_loss is not None:
                loss = np.add.reduceat(strip_loss[place], firsts)
            if row in plain:
                member[place] = units.add(
                    [layer.name],
                    loss.sum(axis=0)[None],
                    np.asarray(layer.size_bits)[None],
                    [layer.cut.strips * cost.strip[row][None] for cost in costs],
                    rules.allowed[row],
                )
                continue
            code_bits = channel_code_bits(len(options))
            codes[row] = len(firsts) * code_bits
            first_unit = units.add(
                _part_names(layer.name, firsts, counts[:, 0]),
                loss,
                counts * layer.strip_bits + code_bits,
                [counts * cost.strip[row] for cost in costs],
                rules.allowed[row],
            )
            member[place] = first_unit + np.arange(layer.cut.strips) // unit.tile
    return Posed(
        units.problem(options),
        tables,
        units.further(),
        tuple(cost.scale for cost in costs),
        tuple(cost.fixed for cost in costs),
        member,
        starts,
        tuple(whole),
        tuple(codes),
        rules,
    )


def problem_of(profile: Profile, arrays: ProfileArrays | None, unit: str, budget_bits: int) -> Problem:
    """The problem of a profile without constraints; see `pose`."""
    return pose(profile, arrays, unit, budget_bits).problem


def layer_scores(profile: Profile) -> NDArray[np.float64]:
    """Loss of every option for every whole layer, (layers, options); 0 for options that do not fit."""
    loss = np.zeros((len(profile.layers), len(profile.options)))
    for row, layer in enumerate(profile.layers):
        for score in layer.scores:
            loss[row, profile.options.index(score.option)] = score.loss
    return loss


def _check_scored(profile: Profile, arrays: ProfileArrays | None, unit: Unit) -> None:
    """Refuse a unit below the layer that has no scores."""
    if arrays is None:
        raise InputError(
            f"the profile holds exact scores, which exist per layer only; profile with Fisher scores to "
            f"choose per {unit}, or solve with --unit layer"
        )
    if profile.cut != unit.cut:
        raise InputError(
            f"the profile has scores per {profile.cut or 'channel'}, and none to choose per {unit}; profile "
            f"with --unit {unit}, or solve with --unit {profile.cut or 'channel'} or --unit layer"
        )


def _is_one_unit(layer: LayerFacts, unit: Unit, allowed: NDArray[np.bool_]) -> bool:
    """One tile or strip is the whole layer, and needs no code that names its option; nor does one option."""
    alone = unit.kind == "layer" or (unit.kind == "inputs" and not layer.cut.inputs)
    return alone or layer.cut.strips <= unit.tile or int(allowed.sum()) == 1


def _total(loss: NDArray[np.float64] | None, rows: list[int], options: int) -> NDArray[np.float64]:
    return np.zeros((1, options)) if loss is None else loss[rows].sum(axis=0)[None]


def _part_names(layer: str, firsts: NDArray[np.intp], counts: NDArray[np.intp]) -> list[str]:
    return [
        f"{layer}[{first}]" if count == 1 else f"{layer}[{first}-{first + count - 1}]"
        for first, count in zip(firsts.tolist(), counts.tolist(), strict=True)
    ]
