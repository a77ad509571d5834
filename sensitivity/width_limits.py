"""What budgets limit where weights and activations are chosen together, in whole numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from ..allocator import ACT_MEMORY, BOPS, MACS, SIZE, AmountForm, Budget, CostTable, WholeCosts
from ..quantizer import parse_option
from .facts import LayerFacts, allowed_options, float_work
from .feasible import Ledger
from .profile import Profile

__all__ = ["WidthLimit", "width_limits"]


@dataclass(frozen=True, eq=False)
class WidthLimit:
    """A quantity that a budget limits.

    Attributes
    ----------
    budget : Budget
    name : str
        What messages and shadow prices call it.
    amount : int
        The limit, in whole numbers.
    scale : int
        Whole numbers per unit of the quantity.
    form : AmountForm
        How messages write amounts.
    costs : int64 array (layers, options) or (layers, options, activation options)
        The latter where a table names pairs such as ``w4a8``.
    by_bits : bool
        Whether costs are to be multiplied by what enters a layer, the sum of ``macs * bits``.
    """

    budget: Budget
    name: str
    amount: int
    scale: int
    form: AmountForm
    costs: NDArray[np.int64]
    by_bits: bool = False

    def of(self, row: int, options: NDArray[np.intp], entering: int, width: int) -> NDArray[np.int64]:
        """Costs of a layer's options.

        Parameters
        ----------
        entering : int
            Sum over what the layer reads of ``macs * bits``.
        width : int
            Which activation option has the widest of it.
        """
        costs = self.costs[row, options]
        if self.costs.ndim > 2:
            costs = costs[:, width]
        found: NDArray[np.int64] = costs * entering if self.by_bits else costs
        return found


def width_limits(
    profile: Profile,
    facts: Sequence[LayerFacts],
    budgets: Sequence[Budget],
    ledger: Ledger,
    tables: Sequence[CostTable],
    allowed: NDArray[np.bool_],
    widths: Sequence[str],
) -> list[WidthLimit]:
    """What is limited beside activation memory.

    Parameters
    ----------
    allowed : bool array (layers, options)
        Options of the weights that each layer may have.
    widths : sequence of str
        The activation options.

    Raises
    ------
    InputError
        A table without the costs that are needed.
    InfeasibleError
        What stays float takes all of a budget of the size.
    """
    quantities = [budget.quantity for budget in budgets]
    parsed = [parse_option(option) for option in profile.options]
    points = np.array([option.points for option in parsed], np.int64)
    macs = np.array([layer.macs for layer in facts], np.int64)[:, None]
    known = {table.name: table for table in tables}
    found = []
    for budget in budgets:
        name = budget.quantity if quantities.count(budget.quantity) == 1 else str(budget)
        if budget.quantity == SIZE:
            sizes = np.array([layer.size_bits for layer in facts])
            found.append(WidthLimit(budget, name, budget.bits(*ledger), 1, budget.form(*ledger), sizes))
        elif budget.quantity == MACS:
            found.append(_counted(profile, budget, name, macs * points))
        elif budget.quantity == BOPS:
            product = points * np.array([option.bits for option in parsed])
            found.append(_counted(profile, budget, name, np.tile(product, (len(facts), 1))))
        elif budget.quantity != ACT_MEMORY:
            table = known[budget.quantity]
            found.append(_of_table(profile, facts, budget, name, table, allowed, widths))
    return found


def _counted(profile: Profile, budget: Budget, name: str, costs: NDArray[np.int64]) -> WidthLimit:
    """What is counted from the network: layers that stay float take their part whatever is chosen."""
    fixed = sum(float_work(budget.quantity, profile.excluded_macs).values())
    form, by_bits = AmountForm(offset=fixed), budget.quantity == BOPS
    return WidthLimit(budget, name, int(budget.value) - fixed, 1, form, costs, by_bits)


def _of_table(
    profile: Profile,
    facts: Sequence[LayerFacts],
    budget: Budget,
    name: str,
    table: CostTable,
    allowed: NDArray[np.bool_],
    widths: Sequence[str],
) -> WidthLimit:
    """Costs of every option of the weights with every one of the activations, or of the weights alone."""
    ends = widths if table.names_pairs else ("",)
    options = [f"{option}{width}" for option in profile.options for width in ends]
    whole = WholeCosts.of(
        table.paired(allowed_options(facts, profile.options, allowed), ends),
        [layer.name for layer in facts],
        options,
        [layer.cut.strips for layer in facts],
    )
    costs = whole.layer.reshape(len(facts), len(profile.options), len(ends))
    amount = int(Fraction(budget.value) * whole.scale) - whole.fixed
    form = AmountForm(whole.scale, offset=whole.fixed)
    own = costs if table.names_pairs else costs[:, :, 0]
    return WidthLimit(budget, name, amount, whole.scale, form, own)
