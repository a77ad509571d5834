"""What limits a plan: budgets, constraints and tables of costs, from the command line and from a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..allocator import (
    Constraints,
    ConstraintsFile,
    CostTable,
    parse_budget,
    parse_unit,
    read_constraints,
    read_table,
)
from ..errors import InputError

__all__ = ["Limits", "check_unit", "limits_of"]


@dataclass(frozen=True)
class Limits:
    """Budgets as written, the rules beside them, and the tables that budgets may name."""

    budgets: tuple[str, ...]
    constraints: Constraints
    tables: tuple[CostTable, ...]


def limits_of(
    file: Path | None,
    budgets: Sequence[str] | None,
    tie: Sequence[str] | None,
    pin: Sequence[str] | None,
    exclude: Sequence[str] | None,
    forbid: Sequence[str] | None,
    layer_options: Sequence[str] | None,
    tables: Sequence[str] | None,
) -> Limits:
    """The file of constraints and the command line together.

    Raises
    ------
    InputError
        A file that cannot be read, a text of another form than its argument has, or the same said twice.
    """
    stored = ConstraintsFile() if file is None else read_constraints(file)
    written = Constraints(
        tie=tuple(_tie(text) for text in tie or ()),
        pin=_by_pattern("--pin", pin, "conv1=w8"),
        exclude=tuple(exclude or ()),
        forbid={
            pattern: tuple(part.strip() for part in text.split(","))
            for pattern, text in _by_pattern("--forbid", forbid, "layer3.*=w2,w3").items()
        },
        options=_by_pattern("--layer-options", layer_options, "fc=w6..8"),
    )
    files = stored.tables | _by_pattern("--table", tables, "latency=table.csv")
    every = (*stored.budgets, *(budgets or ()))
    for budget in every:
        parse_budget(budget)
    return Limits(
        every,
        stored.constraints().merged(written),
        tuple(read_table(name, Path(path)) for name, path in files.items()),
    )


def check_unit(text: str) -> str:
    """The unit of choice as written, ``auto`` included.

    Raises
    ------
    InputError
        Not a unit.
    """
    if text == "auto":
        return text
    try:
        return str(parse_unit(text))
    except InputError as error:
        raise InputError(f"--unit: {error}") from error


def _tie(text: str) -> str | tuple[str, ...]:
    patterns = tuple(part.strip() for part in text.split(","))
    if not all(patterns):
        raise InputError(f"--tie is '{text}'; give patterns of layer names such as 'layer1.*.conv1', or auto")
    return patterns[0] if len(patterns) == 1 else patterns


def _by_pattern(option: str, given: Sequence[str] | None, example: str) -> dict[str, Any]:
    """Texts of the form NAME=VALUE, by name."""
    found: dict[str, str] = {}
    for text in given or ():
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals and value):
            raise InputError(f"{option} is '{text}'; write it as {option} '{example}'")
        if found.setdefault(name, value) != value:
            raise InputError(f"{option} is given for '{name}' twice, {found[name]} and {value}; keep one")
    return found
