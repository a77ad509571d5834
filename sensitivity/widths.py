"""How many bits every value gets: the option of least loss, or, under budgets that count them, together with
the weights.

A layer's bit operations depend on the bits of its weight and of what it reads, so that layers and values that
meet are chosen together: they are the units. A unit's options are the combinations of its layers' and its
values' options that no other one is as good as in loss and in every cost that is limited; given the bits of
its values, its layers are independent, and their combinations are built up layer by layer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from ..allocator import (
    ACT_MEMORY,
    BOPS,
    FLOAT_BITS,
    Budget,
    Certificate,
    Columns,
    Constraints,
    CostTable,
    LiveStep,
    MultiProblem,
    efficient,
    joined,
    peak_limits,
    solve_multi,
)
from ..errors import InfeasibleError, InputError
from ..quantizer import parse_activation
from .activation_profile import ActivationProfile
from .facts import LayerFacts, facts_of_profile, rules_of
from .feasible import Ledger
from .memory import memory_form, memory_limit
from .problems import layer_scores
from .profile import Profile
from .site_rules import site_allowed
from .width_limits import WidthLimit, width_limits

__all__ = ["Together", "counts_widths", "least_loss_widths", "profile_site_allowed", "solve_together"]

MOST_COMBINATIONS = 50_000


@dataclass(frozen=True, eq=False)
class Together:
    """Options of layers and values chosen together.

    Attributes
    ----------
    layers, widths : tuple of str
        Option of every layer and of every value.
    certificate : Certificate
        Of the choice among whole layers and values, with a shadow price for each quantity that is limited.
    """

    layers: tuple[str, ...]
    widths: tuple[str, ...]
    certificate: Certificate


def counts_widths(budgets: Sequence[Budget], tables: Iterable[CostTable]) -> bool:
    """Whether a budget depends on the bits of activations."""
    quantities = {BOPS, ACT_MEMORY} | {table.name for table in tables if table.names_pairs}
    return any(budget.quantity in quantities for budget in budgets)


def profile_site_allowed(profile: Profile, constraints: Constraints) -> NDArray[np.bool_]:
    """Which options every value of a profile may take, (values, options); see `site_allowed`."""
    found = profile.activations
    sites = () if found is None else found.sites
    return site_allowed(
        constraints,
        [layer.name for layer in profile.layers],
        {site.name: tuple(site.readers) for site in sites},
        {site.name: [score.option for score in site.scores] for site in sites},
        () if found is None else found.options,
    )


def least_loss_widths(found: ActivationProfile, allowed: NDArray[np.bool_]) -> tuple[str, ...]:
    """The option of least score for every value; of equals that of most bits."""
    chosen = []
    for site, row in zip(found.sites, allowed, strict=True):
        options = [found.options[column] for column in np.flatnonzero(row).tolist()]
        chosen.append(min(options, key=lambda option: (site.loss(option), -parse_activation(option).bits)))
    return tuple(chosen)


def solve_together(
    profile: Profile,
    budgets: Sequence[Budget],
    ledger: Ledger,
    constraints: Constraints,
    tables: Sequence[CostTable],
    *,
    time_limit_s: float | None = None,
) -> Together:
    """Options of whole layers and of values that they read: least total loss within every budget.

    Parameters
    ----------
    constraints : Constraints
        With the tie ``auto`` written out.
    tables : sequence of CostTable
        Further quantities.

    Raises
    ------
    InfeasibleError
        No choice meets the budgets.
    InputError
        So many layers and values depend on each other, by ties or by weights that several nodes use, that
        their combinations cannot be listed.
    """
    found = profile.activations
    assert found is not None
    facts = facts_of_profile(profile)
    rules = rules_of(facts, profile.options, constraints)
    allowed = profile_site_allowed(profile, constraints)
    limits = width_limits(profile, facts, budgets, ledger, tables, rules.allowed, found.options)
    bits = np.array([parse_activation(option).bits for option in found.options])
    elements = {site.name: site.elements for site in found.sites}
    least, most = (
        {site.name: int(pick(bits[row])) for site, row in zip(found.sites, allowed, strict=True)}
        for pick in (np.min, np.max)
    )
    more = not found.settings.get("attention")
    memory = memory_limit(budgets, found.live, elements, least, most, attention=more)
    steps = [] if memory is None else peak_limits(found.live, elements, most, memory)
    groups = {row: group for group in rules.groups for row in group}
    parts = _Parts(profile, facts, rules.allowed, allowed, bits, limits, groups, counted=memory is not None)
    units = _units(found, [layer.name for layer in facts], groups)
    columns = [parts.columns(*unit) for unit in units]
    return _solved(profile, found, units, columns, limits, steps, bits, time_limit_s)


_Unit = tuple[tuple[int, ...], tuple[int, ...]]
"""Indices of the values and of the layers that are chosen together."""


def _units(
    found: ActivationProfile, layers: Sequence[str], groups: Mapping[int, Sequence[int]]
) -> list[_Unit]:
    """Layers and values that meet, by what they read and by ties."""
    row_of = {name: row for row, name in enumerate(layers)}
    # Values count from 0, layers go on behind them.
    count = len(found.sites)
    of = list(range(count + len(layers)))

    def root(index: int) -> int:
        while of[index] != index:
            index = of[index]
        return index

    pairs = [(site, count + row_of[name]) for site, each in enumerate(found.sites) for name in each.readers]
    pairs += [(count + row, count + other) for row, group in groups.items() for other in group]
    for one, other in pairs:
        first, second = sorted((root(one), root(other)))
        of[second] = first
    members: dict[int, list[int]] = {}
    for index in range(len(of)):
        members.setdefault(root(index), []).append(index)
    return [
        (
            tuple(index for index in indices if index < count),
            tuple(index - count for index in indices if index >= count),
        )
        for indices in members.values()
    ]


@dataclass(frozen=True, eq=False)
class _Parts:
    """What the combinations of a unit are made of."""

    profile: Profile
    facts: Sequence[LayerFacts]
    allowed: NDArray[np.bool_]
    site_allowed: NDArray[np.bool_]
    bits: NDArray[np.int64]
    limits: Sequence[WidthLimit]
    groups: Mapping[int, Sequence[int]]
    counted: bool
    """Whether the memory of values is limited, so that each value's bits are a cost of their own."""

    def columns(self, sites: tuple[int, ...], layers: tuple[int, ...]) -> Columns:
        """The efficient combinations of a unit; choices of the values first, then of the layers."""
        found = self.profile.activations
        assert found is not None
        choices = [np.flatnonzero(self.site_allowed[site]).tolist() for site in sites]
        if prod(map(len, choices)) > MOST_COMBINATIONS:
            names = ", ".join(found.sites[site].name for site in sites[:4])
            raise InputError(
                f"the values {names} and others depend on each other, by ties or by a weight that several "
                f"nodes use, and have more than {MOST_COMBINATIONS:,} combinations of options; give fewer "
                "activation options, or tie fewer layers"
            )
        every = [self._under(sites, layers, widths) for widths in itertools.product(*choices)]
        whole = efficient(
            Columns(
                np.concatenate([each.loss for each in every]),
                np.concatenate([each.costs for each in every], 1),
                np.concatenate([each.choice for each in every], 1),
            )
        )
        return Columns(whole.loss, whole.costs[: len(self.limits)], whole.choice)

    def _under(self, sites: tuple[int, ...], layers: tuple[int, ...], widths: Sequence[int]) -> Columns:
        """The combinations of the layers' options where the values have these."""
        found = self.profile.activations
        assert found is not None
        entering = dict.fromkeys((self.facts[row].name for row in layers), 0)
        widest = dict.fromkeys(entering, 0)
        loss = 0.0
        for site, width in zip(sites, widths, strict=True):
            loss += found.sites[site].loss(found.options[width])
            for name, macs in found.sites[site].readers.items():
                entering[name] += macs * int(self.bits[width])
                # Options stand in the order of their bits, and of equal ones as in `layer_widths`.
                widest[name] = max(widest[name], width)
        tied = [group for row, group in self.groups.items() if row in layers and row == group[0]]
        parts = [*tied, *((row,) for row in layers if row not in self.groups)]
        scores = layer_scores(self.profile)
        made = []
        for rows in parts:
            options = np.flatnonzero(self.allowed[rows[0]])
            costs = np.zeros((len(self.limits), len(options)), np.int64)
            for index, limit in enumerate(self.limits):
                for row in rows:
                    name = self.facts[row].name
                    costs[index] += limit.of(row, options, entering[name], widest[name])
            losses = scores[list(rows)][:, options].sum(axis=0)
            made.append(efficient(Columns(losses, costs, np.tile(options, (len(rows), 1)))))
        total = joined(made, len(self.limits))
        order = np.argsort(np.array([row for rows in parts for row in rows], np.intp))
        chosen = np.tile(np.array(widths, np.intp)[:, None], (1, len(total)))
        costs = total.costs
        if self.counted:
            own = np.tile(self.bits[list(widths)][:, None], (1, len(total)))
            costs = np.concatenate([costs, own])
        return Columns(total.loss + loss, costs, np.concatenate([chosen, total.choice[order]]))


def _solved(
    profile: Profile,
    found: ActivationProfile,
    units: Sequence[_Unit],
    columns: Sequence[Columns],
    limits: Sequence[WidthLimit],
    steps: Sequence[tuple[LiveStep, int]],
    bits: NDArray[np.int64],
    time_limit_s: float | None,
) -> Together:
    shape = (len(units), max(map(len, columns)))
    loss, allowed = np.zeros(shape), np.zeros(shape, np.bool_)
    costs = np.zeros((len(limits) + len(steps), *shape), np.int64)
    names, forms = [limit.name for limit in limits], [limit.form for limit in limits]
    alive = []
    for step, _ in steps:
        names.append(f"{ACT_MEMORY} at {step.operation}")
        forms.append(memory_form(FLOAT_BITS * step.floats))
        alive.append(set(step.values))
    for row, ((sites, _), each) in enumerate(zip(units, columns, strict=True)):
        count = len(each)
        loss[row, :count], allowed[row, :count] = each.loss, True
        costs[: len(limits), row, :count] = each.costs
        for index, site in enumerate(sites):
            taken = found.sites[site].elements * bits[each.choice[index]]
            for number, values in enumerate(alive):
                if found.sites[site].name in values:
                    costs[len(limits) + number, row, :count] += taken
    amounts = [limit.amount for limit in limits] + [left for _, left in steps]
    if not amounts:
        # Memory is all that is limited, and it suffices for everything.
        names, forms = [ACT_MEMORY], [memory_form()]
        amounts, costs = [0], np.zeros((1, *shape), np.int64)
    _refuse_unreachable(limits, costs, allowed)
    solution = solve_multi(
        MultiProblem(
            loss,
            costs,
            tuple(amounts),
            tuple(names),
            allowed,
            tuple(" + ".join(_unit_names(profile, found, unit)) for unit in units),
            forms=tuple(forms),
        ),
        time_limit_s=time_limit_s,
    )
    layers, widths = [""] * len(profile.layers), [""] * len(found.sites)
    for (sites, rows), each, column in zip(units, columns, solution.choice.tolist(), strict=True):
        picked = each.choice[:, column].tolist()
        for site, width in zip(sites, picked[: len(sites)], strict=True):
            widths[site] = found.options[width]
        for row, option in zip(rows, picked[len(sites) :], strict=True):
            layers[row] = profile.options[option]
    prices = solution.certificate.shadow_prices
    by_quantity = {limit.name: prices[limit.name] * limit.scale for limit in limits}
    if len(names) > len(limits):
        # A byte more of memory is 8 bits more at every operation.
        by_quantity[ACT_MEMORY] = 8 * sum(prices[name] for name in names[len(limits) :])
    certificate = solution.certificate.model_copy(update={"shadow_prices": by_quantity})
    return Together(tuple(layers), tuple(widths), certificate)


def _unit_names(profile: Profile, found: ActivationProfile, unit: _Unit) -> list[str]:
    sites, rows = unit
    return [profile.layers[row].name for row in rows] or [found.sites[site].name for site in sites]


def _refuse_unreachable(
    limits: Sequence[WidthLimit], costs: NDArray[np.int64], allowed: NDArray[np.bool_]
) -> None:
    for index, limit in enumerate(limits):
        least = int(np.where(allowed, costs[index], np.iinfo(np.int64).max).min(axis=1).sum())
        greatest = int(np.where(allowed, costs[index], 0).max(axis=1).sum())
        if limit.amount < least:
            raise InfeasibleError(
                f"budget {limit.budget} is below what the options of weights and activations can reach per "
                f"layer: {limit.name} is from {limit.form.text(least)} to "
                f"{limit.form.text(greatest)}. Raise the budget or add cheaper options"
            )
