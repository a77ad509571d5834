"""Budgets of what values take in memory, against what their options can reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

from ..allocator import ACT_MEMORY, Budget, LiveStep, peak_bits
from ..errors import InfeasibleError, InputError

__all__ = ["memory_limit", "refuse_memory_of_floats"]


def memory_limit(
    budgets: Sequence[Budget],
    live: Sequence[LiveStep],
    elements: Mapping[str, int],
    least: Mapping[str, int],
    most: Mapping[str, int],
) -> int | None:
    """The least of the budgets of activation memory, in bits; None where there is none.

    Parameters
    ----------
    elements, least, most : mapping of str to int
        Numbers of every value, and the bits that each of them has at least and at most.

    Raises
    ------
    InfeasibleError
        Less than the values take at their fewest bits; names the least and the greatest.
    """
    limits = [(Fraction(budget.value) * 8, budget) for budget in budgets if budget.quantity == ACT_MEMORY]
    if not limits:
        return None
    limit, budget = min(limits, key=lambda pair: pair[0])
    low, high = (peak_bits(live, elements, bits) / 8 for bits in (least, most))
    if limit < 8 * low:
        raise InfeasibleError(
            f"budget {budget} is below what values can reach: where they take most, one sample's take from "
            f"{float(low) / 1024:.6g}KiB to {float(high) / 1024:.6g}KiB. Raise the budget, add options of "
            "fewer activation bits, or store operands of attention too with --attention"
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
