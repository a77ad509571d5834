"""Whether a plan keeps its own budgets and constraints, counted exactly from its layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from ..errors import InfeasibleError, InputError
from .activation_plan import activation_bits, layer_widths, peak_bits
from .budget import ACT_MEMORY, SIZE, parse_budget
from .constraints import Constraints, match_layers, value_rules
from .plan import Plan
from .rules import match_rules
from .tables import CostTable

__all__ = ["Spending", "check_rules", "check_value_rules", "excesses", "further_costs", "spendings"]


@dataclass(frozen=True)
class Spending:
    """What a plan takes of a budget.

    Attributes
    ----------
    budget, quantity : str
    taken, limit : Fraction
        Bits of the quantized weights for the size, else in the unit of the quantity.
    """

    budget: str
    quantity: str
    taken: Fraction
    limit: Fraction


def further_costs(plan: Plan) -> dict[str, Fraction]:
    """Exact totals of the plan's further quantities.

    Raises
    ------
    InputError
        The plan's table has no cost for an option that a layer has.
    """
    assigned = [(layer.name, layer.strip_options()) for layer in plan.layers]
    widths = layer_widths(plan.activations)
    costs = {
        name: CostTable(name, costs).at(widths).total(assigned) for name, costs in (plan.tables or {}).items()
    }
    if plan.live:
        elements = {value.name: value.elements for value in plan.activations}
        # In bytes, as budgets limit it.
        costs[ACT_MEMORY] = peak_bits(plan.live, elements, activation_bits(plan.activations)) / 8
    return costs


def excesses(plan: Plan) -> tuple[Spending, ...]:
    """The budgets that the plan does not keep; none where it keeps all. Errors as `spendings`."""
    return tuple(spending for spending in spendings(plan) if spending.taken > spending.limit)


def spendings(plan: Plan) -> tuple[Spending, ...]:
    """What the plan takes of each of its budgets.

    Raises
    ------
    InputError
        What is written is not a budget, or limits a quantity that the plan has no table for.
    """
    complexity = plan.complexity
    weights = Fraction(sum(layer.size_bits for layer in plan.layers))
    costs = further_costs(plan)
    found = []
    for text in plan.budgets:
        budget = parse_budget(text)
        if budget.quantity == SIZE:
            try:
                limit = budget.bits(complexity.weight_count, complexity.fixed_bits, complexity.float_bits)
            except InfeasibleError:
                limit = 0
            taken, allowed = weights, Fraction(limit)
        elif budget.quantity in costs:
            taken, allowed = costs[budget.quantity], Fraction(budget.value)
        else:
            raise InputError(
                f"the plan's budget {text} limits {budget.quantity}, but its tables are "
                f"{', '.join(costs) or 'none'}; add the table, or remove the budget"
            )
        found.append(Spending(text, budget.quantity, taken, allowed))
    return tuple(found)


def check_rules(plan: Plan, expand: Callable[[str], Sequence[str]]) -> None:
    """Refuse a plan that breaks one of its constraints.

    Parameters
    ----------
    expand : callable
        From a list of options as a user writes it to the options it names; see `match_rules`.

    Raises
    ------
    InputError
        Names the layer and the rule.
    """
    names = [layer.name for layer in plan.layers]
    rules = match_rules(plan.constraints or Constraints(), names, plan.options, expand)
    chosen = [set(layer.strip_options()) for layer in plan.layers]
    for row, options in enumerate(chosen):
        for option in sorted(options.intersection(plan.options)):
            column = plan.options.index(option)
            if not rules.allowed[row, column]:
                raise InputError(
                    f"layer '{names[row]}' has option {option}, against the plan's rule "
                    f"'{rules.reasons[row, column]}'; choose another option, or change the rule"
                )
    for group in rules.groups:
        together = set().union(*(chosen[row] for row in group))
        if len(together) > 1:
            raise InputError(
                f"the layers {', '.join(names[row] for row in group)} are tied in this plan, but have the "
                f"options {', '.join(sorted(together))}; give them one option, or remove the tie"
            )


def check_value_rules(plan: Plan, activation_part: Callable[[str], str]) -> None:
    """Refuse a plan of which a value breaks a rule for a layer that reads it.

    Parameters
    ----------
    activation_part : callable
        See `value_rules`.

    Raises
    ------
    InputError
        Names the value and the rule.
    """
    layers = [layer.name for layer in plan.layers]
    for rule, pattern, named, keep in value_rules(plan.constraints or Constraints(), activation_part):
        matched = {layers[row] for row in match_layers(pattern, layers, rule)}
        for value in plan.activations:
            if matched.intersection(value.readers) and (value.option in named) != keep:
                raise InputError(
                    f"value '{value.name}', read by {', '.join(value.readers)}, has option {value.option}, "
                    f"against the plan's rule '{rule}'; choose another option, or change the rule"
                )
