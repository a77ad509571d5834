"""Whether budgets can be met at all: costs need no scores, so it is known before anything is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple

from ..allocator import (
    ACT_MEMORY,
    COUNTED,
    SIZE,
    AmountForm,
    Budget,
    Constraints,
    CostTable,
    MultiProblem,
    check_together,
    cost_range,
    parse_budget,
    parse_unit,
)
from ..errors import InfeasibleError, InputError
from ..network import Network
from ..quantizer import Option
from .activation_grids import ActivationSettings
from .facts import LayerFacts, allowed_options, counted_table, facts_of_network, resolve, rules_of
from .fewest import fewest_entering
from .problems import Posed, pose_facts

__all__ = [
    "Ledger",
    "Limit",
    "check_feasible",
    "ledger_of",
    "limits_of",
    "read_budgets",
    "tables_for",
    "under_limits",
]


MOST = 2**62
"""Budgets beyond the greatest total cost of a problem limit nothing."""


class Ledger(NamedTuple):
    """What a budget is counted against.

    Parameters
    ----------
    weight_count : int
        Quantized weights.
    fixed_bits : int
        Bits of every other tensor that ships with the network.
    float_bits : int
        Bits of the whole float network.
    """

    weight_count: int
    fixed_bits: int
    float_bits: int


@dataclass(frozen=True)
class Limit:
    """A budget in the whole numbers of a posed problem.

    Attributes
    ----------
    budget : Budget
    name : str
        What messages and shadow prices call it: its quantity, or where two limit the same one, its text.
    cost : int
        Which costs it limits: 0 the bits, k + 1 the table k.
    amount : int
        The limit in bits, or in the whole numbers of the table, rounded down.
    form : AmountForm
        How messages write such amounts.
    """

    budget: Budget
    name: str
    cost: int
    amount: int
    form: AmountForm


def ledger_of(network: Network) -> Ledger:
    """Count a network's weights, and what is stored beside them."""
    quantized = {layer.weight for layer in network.layers}
    fixed_bits = sum(
        8 * tensor.numel() * tensor.element_size()
        for name, tensor in network.outlines.items()
        if name not in quantized
    )
    weight_count = sum(layer.channels * layer.fan_in for layer in network.layers)
    return Ledger(weight_count, fixed_bits, network.float_bits)


def read_budgets(budgets: str | Sequence[str]) -> tuple[Budget, ...]:
    """One budget or several, each once.

    Raises
    ------
    InputError
        None, or not a budget.
    """
    texts = (budgets,) if isinstance(budgets, str) else budgets
    read = tuple({str(budget): budget for budget in map(parse_budget, texts)}.values())
    if not read:
        raise InputError("no budget is given; give at least one, such as 4b")
    return read


def tables_for(
    budgets: Sequence[Budget],
    tables: Sequence[CostTable],
    facts: Sequence[LayerFacts],
    options: Sequence[str],
    floats: Mapping[str, int],
    entering: Mapping[str, int] | None = None,
) -> tuple[CostTable, ...]:
    """The tables given, and what is counted where a budget limits it and no table states it.

    Parameters
    ----------
    floats, entering : mapping of str to int
        See `counted_table`.

    Raises
    ------
    InputError
        A budget of a quantity that has no table, or two tables of one name.
    """
    names = [table.name for table in tables]
    twice = [name for name in names if names.count(name) > 1 or name == SIZE]
    if twice:
        raise InputError(f"a table is named {twice[0]}, which is taken; give every table a name of its own")
    for budget in budgets:
        if budget.quantity not in (SIZE, *COUNTED, ACT_MEMORY, *names):
            known = ", ".join(dict.fromkeys((SIZE, *COUNTED, ACT_MEMORY, *names)))
            raise InputError(
                f"the budget {budget} limits {budget.quantity}, which is none of {known}; give its costs "
                f"with --table {budget.quantity}=FILE"
            )
    limited = {budget.quantity for budget in budgets}
    counted = (quantity for quantity in COUNTED if quantity in limited and quantity not in names)
    return (*tables, *(counted_table(quantity, facts, options, floats, entering) for quantity in counted))


def check_feasible(
    network: Network,
    options: Sequence[Option],
    budgets: str | Sequence[str],
    unit: str,
    *,
    constraints: Constraints | None = None,
    tables: Sequence[CostTable] = (),
    activations: ActivationSettings | None = None,
) -> None:
    """Refuse budgets that no choice meets, each alone or all together.

    Parameters
    ----------
    budgets : str or sequence of str
        See `parse_budget`.
    unit : str
        See `parse_unit`. A choice below the layer also stores which strip has which option.
    activations : ActivationSettings, optional
        How values may be stored; default: they stay float.

    Raises
    ------
    InputError
        Not a budget, a layer or value that no option fits, constraints that cannot be, a table without the
        costs that are needed, or channels that could not have options of their own.
    InfeasibleError
        Names the least and the greatest; where budgets clash, which, and how far off they are.
    """
    read, parsed, names = read_budgets(budgets), parse_unit(unit), [str(option) for option in options]
    facts = facts_of_network(network, options, parsed.cut)
    rules = resolve(constraints, facts)
    entering = fewest_entering(network, read, rules, activations)
    floats = {layer.name: layer.macs for layer in network.left_out}
    given = tables_for(read, tables, facts, names, floats, entering and entering.fewest)
    if activations is not None and entering is not None:
        needed = allowed_options(facts, names, rules_of(facts, names, rules).allowed)
        every = [str(option) for option in activations.options]
        given = tuple(
            table.paired(needed, every).cheapest(needed, entering.widths) if table.names_pairs else table
            for table in given
        )
    posed = pose_facts(facts, names, parsed, rules, given)
    limits = limits_of(read, posed, unit, ledger_of(network))
    if len(limits) > 1:
        # As if all layers saved their option codes: refuses nothing that some choice meets.
        savings = posed.savings([limit.cost for limit in limits])
        check_together(savings.everywhere(under_limits(posed, limits)))


def limits_of(budgets: Sequence[Budget], posed: Posed, unit: str, ledger: Ledger) -> tuple[Limit, ...]:
    """The budgets in the whole numbers of a posed problem, each one that can be met alone.

    Raises
    ------
    InfeasibleError
        One that cannot; names the least and the greatest that its quantity reaches.
    """
    quantities = [budget.quantity for budget in budgets]
    limits = []
    for budget in budgets:
        # What values take does not depend on the weights.
        if budget.quantity == ACT_MEMORY:
            continue
        name = budget.quantity if quantities.count(budget.quantity) == 1 else str(budget)
        if budget.quantity == SIZE:
            size_bits = min(_size_limit(budget, posed, unit, ledger), MOST)
            limits.append(Limit(budget, name, 0, size_bits, budget.form(*ledger)))
            continue
        index = [table.name for table in posed.tables].index(budget.quantity)
        scale, fixed = posed.scales[index], posed.fixed[index]
        form = AmountForm(scale, offset=fixed)
        amount = min(int(Fraction(budget.value) * scale) - fixed, MOST)
        limits.append(Limit(budget, name, index + 1, amount, form))
        least, greatest = cost_range(replace(posed.problem, cost=posed.further[index]))
        if amount < least:
            raise InfeasibleError(
                f"budget {budget} is below what {_choices(posed)} can reach per {unit}: {budget.quantity} is "
                f"from {form.text(least)} to {form.text(greatest)}. Raise the budget or "
                "add cheaper options"
            )
    return tuple(limits) or (Limit(budgets[0], SIZE, 0, MOST, AmountForm()),)


def under_limits(posed: Posed, limits: Sequence[Limit]) -> MultiProblem:
    """The posed problem with these limits as its budgets."""
    return posed.under(
        [limit.name for limit in limits],
        [limit.cost for limit in limits],
        [limit.amount for limit in limits],
        [limit.form for limit in limits],
    )


def _size_limit(budget: Budget, posed: Posed, unit: str, ledger: Ledger) -> int:
    try:
        limit = budget.bits(*ledger)
    except InfeasibleError:
        # What stays float takes all of it: worse than any shortage that the options could mend.
        limit = -1
    least, greatest = posed.least_bits, cost_range(posed.problem).greatest
    if limit >= least:
        return limit

    def described(weight_bits: int) -> str:
        forms = [parse_budget(f"1{unit}").form(*ledger) for unit in ("b", "MB", "%")]
        average, file, share = (form.text(weight_bits) for form in forms)
        return f"{average} ({file}, {share})"

    raise InfeasibleError(
        f"budget {budget} is below what {_choices(posed)} can reach per {unit}: from "
        f"{described(least)} to {described(greatest)}, of which "
        f"{ledger.fixed_bits / 8e6:.3g}MB are stored unquantized. Raise the budget or add smaller options"
    )


def _choices(posed: Posed) -> str:
    names = posed.problem.option_names or ()
    fitting = (name for name, column in zip(names, posed.rules.allowed.T, strict=True) if column.any())
    options = f"the options {', '.join(fitting)}"
    return f"{options} under the constraints" if posed.rules.groups or posed.rules.reasons else options
