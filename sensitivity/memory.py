"""Budgets of what values take in memory, against what their options can reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

from ..allocator import ACT_MEMORY, AmountForm, Budget, LiveStep, peak_bits
from ..errors import InfeasibleError, InputError

__all__ = ["memory_form", "memory_limit", "refuse_memory_of_floats"]


def memory_form(float_bits: int = 0) -> AmountForm:
    """How messages write bits in memory at an operation, with those of what stays float there."""
    return AmountForm(8 * 1024, "KiB", float_bits)


def memory_limit(
    budgets: Sequence[Budget],
    live: Sequence[LiveStep],
    elements: Mapping[str, int],
    least: Mapping[str, int],
    most: Mapping[str, int],
    *,
    attention: bool,
) -> int | None:
    """The least of the budgets of activation memory, in bits; None where there is none.

    Parameters
    ----------
    elements, least, most : mapping of str to int
        Numbers of every value, and the bits that each of them has at least and at most.
    attention : bool
        Whether operands of attention may be among those that stay float, and could be stored too.

    Raises
    ------
    InfeasibleError
        Less than the values take at their fewest bits; names the least and the greatest, and what would help.
    """
    limits = [(Fraction(budget.value) * 8, budget) for budget in budgets if budget.quantity == ACT_MEMORY]
    if not limits:
        return None
    limit, budget = min(limits, key=lambda pair: pair[0])
    low, high, floats = (
        peak_bits(live, elements, bits) for bits in (least, most, dict.fromkeys(elements, 0))
    )
    if limit < low:
        form = memory_form()
        taken = form.text(low) if low == high else f"from {form.text(low)} to {form.text(high)}"
        ways = ["Raise the budget"]
        if limit < floats:
            taken += f", and those that stay float alone {form.text(floats)}"
        else:
            ways.append("add options of fewer activation bits")
        if attention:
            ways.append("store operands of attention, where there is any, with --attention")
        raise InfeasibleError(
            f"budget {budget} is below what values can reach: where they take most, one sample's take "
            f"{taken}. {', or '.join(ways)}"
        )
    return int(limit)


def refuse_memory_of_floats(budgets: Sequence[Budget]) -> None:
    """Refuse a budget of activation memory where activations have no options.

    Raises
    ------
    InputError
        Names the budget.
    """
    for budget in budgets:
        if budget.quantity == ACT_MEMORY:
            raise InputError(
                f"the budget {budget} limits what activations take, and they stay float; give them options, "
                "such as --options w2..8a4..8"
            )
