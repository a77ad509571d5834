"""What every option of every layer costs besides storage: bit operations, latency, or any other table."""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import RootModel

from ..documents import read_document, read_text
from ..errors import InputError
from .budget import ACT_MEMORY, SIZE

__all__ = ["BOPS", "COUNTED", "FLOAT_OPTION", "MACS", "CostTable", "WholeCosts", "read_table"]

MACS, BOPS = "macs", "bops"
COUNTED = (MACS, BOPS)
"""Multiply-accumulates and bit operations, which are counted from the network and need no table."""
FLOAT_OPTION = "float"
"""What stands in the place of an option for a layer that stays float."""
RESERVED = (SIZE, ACT_MEMORY, *COUNTED)
PAIR_SIGN = "a"
"""Where in an option's name the activations begin."""
NAME_FORM = re.compile(r"[A-Za-z_][\w-]{0,63}")
NUMBER_FORM = re.compile(r"\d{1,19}(?:\.\d{0,30})?(?:[eE][+-]?\d{1,2})?|\.\d{1,30}(?:[eE][+-]?\d{1,2})?")
COLUMNS = ("layer", "option", "cost")
MOST_COST = 1e18
MOST_TOTAL = 2**50
"""Of the costs as integers: sums are exact in floats too, and round-off is below 1e-15 of the total."""
FORMS = (
    "a .csv file with the columns layer,option,cost, or a .json file with a list of objects with these "
    'fields or an object {"layer": {"option": cost}}'
)


@dataclass(frozen=True)
class CostTable:
    """What every option of every layer costs; costs add up over layers.

    Where a layer's strips (channels) have different options, each strip pays its share:
    ``sum_strips cost[layer, option of the strip] / strips``.

    Parameters
    ----------
    name : str
        The quantity, such as ``latency``, by which budgets name it.
    costs : mapping of str to mapping of str to float
        Layer -> option -> cost, 0 to 1e18, in the unit of the budgets. An option may name the activations
        that a layer reads too, such as ``w4a8``, and then counts before ``w4``. ``float`` is what a layer
        costs that stays float.

    Raises
    ------
    InputError
        A name that is none, or a cost that is negative, NaN, infinite or too large.
    """

    name: str
    costs: Mapping[str, Mapping[str, float]]

    def __post_init__(self) -> None:
        if not NAME_FORM.fullmatch(self.name):
            raise InputError(
                f"'{self.name[:80]}' cannot name a table; use letters, digits, - and _, such as latency"
            )
        for layer, options in self.costs.items():
            for option, cost in options.items():
                if not 0 <= cost <= MOST_COST:
                    raise InputError(
                        f"table {self.name}: layer '{layer}' has cost {cost} for option {option}; costs are "
                        f"0 to {MOST_COST:g}"
                    )

    def exact(self, layer: str, option: str) -> Fraction:
        """The cost as the decimal number it is written as.

        Raises
        ------
        InputError
            The table has no such entry.
        """
        try:
            return Fraction(repr(float(self.costs[layer][option])))
        except KeyError:
            raise InputError(
                f"table {self.name} has no cost for layer '{layer}', option {option}; add it, or forbid the "
                "option there"
            ) from None

    def as_document(self) -> dict[str, dict[str, float]]:
        """The costs as plans keep them."""
        return {layer: dict(options) for layer, options in self.costs.items()}

    def total(self, assigned: Iterable[tuple[str, Sequence[str]]]) -> Fraction:
        """Exact cost of an assignment: (layer, option of each strip), every strip paying its share.

        What layers that are not assigned cost as floats is in it.
        """
        chosen = tuple(assigned)
        return sum(
            (
                self.exact(layer, option) * count / len(options)
                for layer, options in chosen
                for option, count in Counter(options).items()
            ),
            self.float_cost([layer for layer, _ in chosen]),
        )

    def float_cost(self, quantized: Collection[str]) -> Fraction:
        """Exact cost of the layers that stay float, those that are not quantized."""
        floats = self._floats(quantized)
        return sum((self.exact(layer, FLOAT_OPTION) for layer in floats), Fraction(0))

    def _floats(self, quantized: Collection[str]) -> dict[str, dict[str, float]]:
        return {
            layer: {FLOAT_OPTION: options[FLOAT_OPTION]}
            for layer, options in self.costs.items()
            if layer not in quantized and FLOAT_OPTION in options
        }

    @property
    def names_pairs(self) -> bool:
        """Whether some options name activations too."""
        return any(_is_pair(option) for options in self.costs.values() for option in options)

    def paired(self, needed: Mapping[str, Sequence[str]], widths: Sequence[str]) -> CostTable:
        """The costs of these options of the weights with every one of these activations.

        A pair that is not in the table costs what the weights' option does.

        Raises
        ------
        InputError
            Neither is there; names the first of them.
        """
        pairs = {
            layer: {f"{option}{width}": option for option in options for width in widths}
            for layer, options in needed.items()
        }
        costs: dict[str, Mapping[str, float]] = {**self._floats(needed)}
        for layer, names in pairs.items():
            own = self.costs.get(layer, {})
            costs[layer] = {pair: own[alone] for pair, alone in names.items() if alone in own} | dict(own)
        return CostTable(self.name, costs).restricted({layer: list(names) for layer, names in pairs.items()})

    def at(self, widths: Mapping[str, str]) -> CostTable:
        """The costs of options of the weights where layers read these activations.

        Parameters
        ----------
        widths : mapping of str to str
            Layer -> option of what it reads; of several, that of most bits.
        """
        if not self.names_pairs:
            return self
        costs: dict[str, dict[str, float]] = {}
        for layer, options in self.costs.items():
            width = widths.get(layer)
            own = {option: cost for option, cost in options.items() if not _is_pair(option)}
            if width is not None:
                own |= {
                    option.removesuffix(width): cost
                    for option, cost in options.items()
                    if option.partition(PAIR_SIGN)[1:] == (PAIR_SIGN, width[1:])
                }
            costs[layer] = own
        return CostTable(self.name, costs)

    def cheapest(self, needed: Mapping[str, Sequence[str]], widths: Mapping[str, Sequence[str]]) -> CostTable:
        """The costs of options of the weights with the activations that make each of them the cheapest.

        Parameters
        ----------
        needed, widths : mapping of str to sequence of str
            Layer -> options of its weights, and of what it reads, that it may have.
        """
        costs = {
            layer: {
                option: min(self.costs[layer][f"{option}{width}"] for width in widths[layer])
                for option in options
            }
            for layer, options in needed.items()
        }
        return CostTable(self.name, self._floats(needed) | costs)

    def restricted(self, needed: Mapping[str, Sequence[str]]) -> CostTable:
        """The entries of these layers and options, and what other layers cost as floats.

        Raises
        ------
        InputError
            Some are missing; names the first of them.
        """
        missing = [
            f"'{layer}' {option}"
            for layer, options in needed.items()
            for option in options
            if option not in self.costs.get(layer, {})
        ]
        if missing:
            more = f" and {len(missing) - 6} more" if len(missing) > 6 else ""
            raise InputError(
                f"table {self.name} has no cost for layer {', '.join(missing[:6])}{more}; every option that "
                "a layer may take needs one: add them, or forbid the options there"
            )
        return CostTable(
            self.name,
            self._floats(needed)
            | {layer: {option: self.costs[layer][option] for option in needed[layer]} for layer in needed},
        )


@dataclass(frozen=True, eq=False)
class WholeCosts:
    """A table in whole numbers, for solvers: never less than the costs themselves.

    Attributes
    ----------
    layer, strip : int64 array (layers, options)
        ``ceil(scale * cost)`` of the whole layer and ``ceil(scale * cost / strips)`` of one strip; 0 where
        the table has no entry.
    scale : int
        Whole numbers per unit of the table; exact costs where the numbers stay small enough for that.
    fixed : int
        What layers cost that stay float, those that are in the table and not among the layers.
    """

    layer: NDArray[np.int64]
    strip: NDArray[np.int64]
    scale: int
    fixed: int

    @classmethod
    def of(
        cls, table: CostTable, layers: Sequence[str], options: Sequence[str], strips: Sequence[int]
    ) -> WholeCosts:
        """Costs of these layers and options in whole numbers.

        Parameters
        ----------
        strips : sequence of int
            How many strips every layer has.
        """
        exact = {
            (row, column): table.exact(layer, option)
            for row, layer in enumerate(layers)
            for column, option in enumerate(options)
            if option in table.costs.get(layer, {})
        }
        greatest = dict.fromkeys(range(len(layers)), Fraction(0))
        for (row, _), cost in exact.items():
            greatest[row] = max(greatest[row], cost)
        scale = _scale([cost / strips[row] for (row, _), cost in exact.items()], sum(greatest.values()))
        whole = np.zeros((2, len(layers), len(options)), np.int64)
        for (row, column), cost in exact.items():
            whole[:, row, column] = math.ceil(cost * scale), math.ceil(cost * scale / strips[row])
        return cls(whole[0], whole[1], scale, math.ceil(table.float_cost(layers) * scale))


def read_table(name: str, path: Path) -> CostTable:
    """Read a table of costs: CSV with the columns layer, option and cost, or JSON of the same.

    Raises
    ------
    InputError
        Unreadable, neither form, an entry twice, a cost that is no number or negative; names the line or the
        entry.
    """
    if name in RESERVED:
        raise InputError(
            f"a table cannot be named {name}, which is counted from the network; use another name"
        )
    what = f"table {name} ({path})"
    suffix = Path(path).suffix.lower()
    if suffix == ".csv":
        return CostTable(name, _csv_costs(read_text(path, what).removeprefix("\ufeff"), what))
    if suffix == ".json":
        return CostTable(name, _json_costs(read_document(path, RootModel[Any], f"table {name}").root, what))
    raise InputError(f"{what} is neither .csv nor .json; give {FORMS}")


def _is_pair(option: str) -> bool:
    """Whether an option names activations too."""
    return PAIR_SIGN in option and option != FLOAT_OPTION


def _scale(shares: Sequence[Fraction], greatest: Fraction | int) -> int:
    """The least number that makes all shares whole, or the greatest power of 10 that keeps totals small."""
    scale = 1
    for denominator in {share.denominator for share in shares}:
        scale = math.lcm(scale, denominator)
        if scale * greatest > MOST_TOTAL:
            digits = math.floor(math.log10(MOST_TOTAL / greatest))
            return int(10 ** max(digits, 0))
    return scale


def _csv_costs(text: str, what: str) -> dict[str, dict[str, float]]:
    costs: dict[str, dict[str, float]] = {}
    try:
        lines = list(csv.reader(io.StringIO(text), strict=True))
    except csv.Error as error:
        raise InputError(f"{what} is not CSV: {error}") from error
    head = tuple(cell.strip() for cell in lines[0]) if lines else ()
    if head != COLUMNS:
        raise InputError(f"{what} begins with '{','.join(head)[:80]}'; give {FORMS}")
    for number, cells in enumerate(lines[1:], start=2):
        if not cells:
            continue
        if len(cells) != len(COLUMNS):
            raise InputError(f"{what}, line {number}: {len(cells)} values; a line has layer,option,cost")
        layer, option, cost = (cell.strip() for cell in cells)
        if not NUMBER_FORM.fullmatch(cost):
            raise InputError(
                f"{what}, line {number}: the cost is '{cost[:80]}'; costs are numbers, at least 0"
            )
        _enter(costs, layer, option, float(cost), what)
    return costs


def _json_costs(data: Any, what: str) -> dict[str, dict[str, float]]:
    costs: dict[str, dict[str, float]] = {}
    for layer, option, cost in _json_entries(data, what):
        if not (isinstance(layer, str) and isinstance(option, str)):
            raise InputError(f"{what} names layer {layer!r:.80}, option {option!r:.80}; names are texts")
        if isinstance(cost, bool) or not isinstance(cost, int | float) or not 0 <= cost <= MOST_COST:
            raise InputError(
                f"{what}: layer '{layer}', option {option} has cost {cost!r:.80}; costs are numbers from 0 "
                f"to {MOST_COST:g}"
            )
        _enter(costs, layer, option, float(cost), what)
    return costs


def _json_entries(data: Any, what: str) -> list[tuple[Any, Any, Any]]:
    if isinstance(data, dict) and all(isinstance(options, dict) for options in data.values()):
        return [(layer, option, cost) for layer, options in data.items() for option, cost in options.items()]
    if isinstance(data, list) and all(
        isinstance(entry, dict) and set(entry) == set(COLUMNS) for entry in data
    ):
        return [(entry["layer"], entry["option"], entry["cost"]) for entry in data]
    raise InputError(f"{what} is neither a list of entries nor an object of layers; give {FORMS}")


def _enter(costs: dict[str, dict[str, float]], layer: str, option: str, cost: float, what: str) -> None:
    options = costs.setdefault(layer, {})
    if option in options:
        raise InputError(f"{what} gives layer '{layer}', option {option} two costs; keep one of them")
    options[option] = cost
