"""How a budget is written: ``4b``, ``1.2MB``, ``300KiB``, ``25%``, ``bops=2.5G``, ``latency=3.5``."""

from __future__ import annotations

import enum
import math
import re
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction

from ..errors import InfeasibleError, InputError

__all__ = ["ACT_MEMORY", "SIZE", "AmountForm", "Budget", "BudgetKind", "average_budget", "parse_budget"]

SIZE = "size"
"""The quantity that budgets without a name limit."""
ACT_MEMORY = "act_memory"
"""The quantity of what the values of one sample take, in bytes, where they take most."""
BUDGET_FORM = re.compile(
    r"(?:(?P<name>[A-Za-z_][\w-]{0,63})\s*=\s*)?"
    r"(?P<number>[+-]?(?:\d{1,15}(?:\.\d{0,9})?|\.\d{1,9}))\s*(?P<unit>[A-Za-z%]*)"
)
MOST_DECIMALS = 9
"""Of the number of a budget."""
SIZE_DIGITS = 4
"""Of sizes in messages."""
BYTES_OF_UNIT = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}
MULTIPLES = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
OTHERS = f"macs=80M, bops=2.5G (bit operations), {ACT_MEMORY}=200KiB or, of a table of costs, latency=3.5"
GRAMMAR = (
    "write 4b or 3.5b (average stored bits per quantized weight), 1.2MB, 300KiB or 512B (all that is "
    f"stored but the file's header; units {', '.join(BYTES_OF_UNIT)}), 25% (of the float network), "
    f"{OTHERS}"
)
NAMED_GRAMMAR = f"write {OTHERS}; k, M, G and T are thousand to trillion"
MEMORY_GRAMMAR = (
    f"write {ACT_MEMORY}=200KiB, what the values of one sample may take (units {', '.join(BYTES_OF_UNIT)})"
)


class BudgetKind(enum.StrEnum):
    """What a budget limits; the value says it in words."""

    AVERAGE_BITS = "average stored bits per quantized weight"
    BYTES = "bytes of all that is stored but the file's header"
    FLOAT_PERCENT = "percent of the float network"
    TOTAL = "total of a quantity over all layers"


@dataclass(frozen=True)
class AmountForm:
    """How messages write an amount: as a budget that limits it is written, ``(amount + offset) / scale``.

    Parameters
    ----------
    scale : int or Fraction
        Whole numbers, or bits, in one of the unit.
    unit : str
        What stands behind the number, such as ``b`` or ``MB``.
    offset : int
        What the budget counts beside the amount.
    digits : int
        Significant digits.
    """

    scale: int | Fraction = 1
    unit: str = ""
    offset: int = 0
    digits: int = 6

    def text(self, amount: int | Fraction) -> str:
        """The amount, rounded up, so that a budget of what is written allows it."""
        value = (Fraction(amount) + self.offset) / self.scale
        decimals = MOST_DECIMALS
        if value:
            decimals = min(self.digits - 1 - math.floor(math.log10(abs(value))), MOST_DECIMALS)
        steps = math.ceil(value * Fraction(10) ** decimals)
        return f"{Decimal(steps).scaleb(-decimals).normalize():f}{self.unit}"


@dataclass(frozen=True)
class Budget:
    """A limit on the storage of a network, or on another quantity.

    Parameters
    ----------
    kind : BudgetKind
        What is limited.
    value : Decimal
        Bits per quantized weight, bytes, percent, or the limit on the total; exact, as written.
    text : str
        The budget as written, which `str` gives back; budgets that differ in it alone are equal.
    quantity : str
        ``size``, ``bops``, ``act_memory`` (in bytes) or the name of a table of costs.
    """

    kind: BudgetKind
    value: Decimal
    text: str = field(compare=False)
    quantity: str = SIZE

    def __str__(self) -> str:
        return self.text

    def bits(self, weight_count: int, fixed_bits: int, float_bits: int) -> int:
        """Limit on the storage of the quantized weights in bits, with all their overheads.

        ``value * weight_count`` for an average, ``8 * value - fixed_bits`` for bytes and
        ``value / 100 * float_bits - fixed_bits`` for percent, rounded down.

        Parameters
        ----------
        weight_count : int
            Number of quantized weights.
        fixed_bits : int
            Bits of what is stored unquantized: biases and every other parameter and buffer.
        float_bits : int
            Bits of the whole float network.

        Raises
        ------
        InputError
            A budget of another quantity than the size.
        InfeasibleError
            What is stored unquantized leaves nothing of the budget.
        """
        if self.kind is BudgetKind.TOTAL:
            raise InputError(f"the budget {self} limits {self.quantity} and not the size; {GRAMMAR}")
        if self.kind is BudgetKind.AVERAGE_BITS:
            return int(self.value * weight_count)
        whole = self.value * 8 if self.kind is BudgetKind.BYTES else self.value * float_bits / 100
        if whole <= fixed_bits:
            raise InfeasibleError(
                f"the budget {self} allows {int(whole):,} bits for all that is stored, but what is "
                f"stored unquantized, such as biases, needs {fixed_bits:,} bits, and the float network has "
                f"{float_bits:,} bits; raise the budget"
            )
        return int(whole) - fixed_bits

    def form(self, weight_count: int, fixed_bits: int, float_bits: int) -> AmountForm:
        """How messages write bits of the quantized weights under a budget of the size.

        Parameters as `bits`.
        """
        if self.kind is BudgetKind.AVERAGE_BITS:
            return AmountForm(weight_count, "b", digits=SIZE_DIGITS)
        if self.kind is BudgetKind.FLOAT_PERCENT:
            return AmountForm(Fraction(float_bits, 100), "%", fixed_bits, SIZE_DIGITS)
        unit = self.text.lstrip("+.0123456789 ")
        return AmountForm(8 * BYTES_OF_UNIT[unit], unit, fixed_bits, SIZE_DIGITS)

    def total_form(self) -> AmountForm:
        """How messages write totals of a quantity other than the size: in the budget's own unit."""
        unit = self.text.partition("=")[2].lstrip("+.0123456789")
        return AmountForm((BYTES_OF_UNIT if self.quantity == ACT_MEMORY else MULTIPLES)[unit], unit)


def parse_budget(text: str) -> Budget:
    """Read a budget: ``4b``, ``1.2MB``, ``300KiB``, ``512B``, ``25%``, ``bops=2.5G``, ``latency=3.5``.

    ``act_memory=200KiB`` limits what values take, for one sample.

    ``b`` is the average of stored bits per quantized weight, overheads included; bytes and percent limit
    all that is stored but the file's header. Case matters, since a bit is not a byte. A name and ``=`` limit
    the total of that quantity; ``size=4b`` is ``4b``.

    Raises
    ------
    InputError
        Not a budget, or not above 0; the message teaches the grammar.
    """
    stripped = text.strip()
    match = BUDGET_FORM.fullmatch(stripped)
    named = match is not None and match["name"] not in (None, SIZE)
    grammar = NAMED_GRAMMAR if named else GRAMMAR
    if match is None or not (named or match["unit"]):
        raise InputError(f"'{stripped[:80]}' is not a budget; {grammar}")
    number, unit = Decimal(match["number"]), match["unit"]
    if number <= 0:
        raise InputError(f"the budget '{stripped}' is not above 0; {grammar}")
    if named:
        return _total(match["name"], number, unit, stripped)
    written = f"{match['number']}{unit}"
    if unit == "b":
        return Budget(BudgetKind.AVERAGE_BITS, number, written)
    if unit == "%":
        return Budget(BudgetKind.FLOAT_PERCENT, number, written)
    if unit not in BYTES_OF_UNIT:
        raise InputError(f"'{unit}' in the budget '{stripped}' is not a unit; {GRAMMAR}")
    return Budget(BudgetKind.BYTES, number * BYTES_OF_UNIT[unit], written)


def average_budget(weight_bits: int, weight_count: int) -> str:
    """The least budget with four decimals, such as ``3.1416b``, that allows so many bits of the weights."""
    steps = -(-weight_bits * 10_000 // weight_count)
    return f"{Decimal(steps) / 10_000:.4f}b"


def _total(name: str, number: Decimal, multiple: str, given: str) -> Budget:
    if name == ACT_MEMORY:
        if multiple not in BYTES_OF_UNIT:
            raise InputError(f"'{multiple}' in the budget '{given}' is not a unit; {MEMORY_GRAMMAR}")
        value = number * BYTES_OF_UNIT[multiple]
        return Budget(BudgetKind.TOTAL, value, "".join(given.split()), name)
    if multiple not in MULTIPLES:
        raise InputError(f"'{multiple}' in the budget '{given}' is not a multiple; {NAMED_GRAMMAR}")
    value = number * MULTIPLES[multiple]
    return Budget(BudgetKind.TOTAL, value, "".join(given.split()), name)
