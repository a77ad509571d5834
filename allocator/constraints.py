"""What a user demands of a plan beside its budgets: tied, pinned and excluded layers, and their options."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from ..documents import read_text, validate_document
from ..errors import InputError
from .layer_plan import Document, Text

__all__ = [
    "AUTO",
    "Constraints",
    "ConstraintsFile",
    "converted",
    "match_layers",
    "read_constraints",
    "read_rule",
    "value_rules",
]

AUTO = "auto"
"""The tie that stands for all layers that read the same input."""
Entry = TypeVar("Entry")


class Constraints(Document):
    """Rules for the choice; patterns are layer names in which ``*`` stands for any text (dots too).

    Parameters
    ----------
    tie : tuple of (str or tuple of str)
        Layers that match one pattern, or one of several, share one option. ``auto`` ties all layers that
        read the same input, such as the query, key and value projections of attention.
    pin : dict of str to str
        Pattern -> the option that these layers have, such as ``{"conv1": "w8"}``.
    exclude : tuple of str
        Layers that stay float. They are left out before anything is measured.
    forbid : dict of str to tuple of str
        Pattern -> options that these layers must not have, such as ``{"layer3.*": ["w2", "w3"]}``.
    options : dict of str to str
        Pattern -> the only options that these layers may have, such as ``{"fc": "w6..8"}``.
    """

    tie: tuple[Text | tuple[Text, ...], ...] = ()
    pin: dict[Text, Text] = Field(default_factory=dict)
    exclude: tuple[Text, ...] = ()
    forbid: dict[Text, tuple[Text, ...]] = Field(default_factory=dict)
    options: dict[Text, Text] = Field(default_factory=dict)

    def merged(self, other: Constraints) -> Constraints:
        """Both together.

        Raises
        ------
        InputError
            They pin one pattern to two options, or give it two option sets.
        """
        return Constraints(
            tie=tuple(dict.fromkeys((*self.tie, *other.tie))),
            pin=_merged("pin", self.pin, other.pin),
            exclude=tuple(dict.fromkeys((*self.exclude, *other.exclude))),
            forbid={
                pattern: tuple(dict.fromkeys((*self.forbid.get(pattern, ()), *other.forbid.get(pattern, ()))))
                for pattern in (*self.forbid, *other.forbid)
            },
            options=_merged("options", self.options, other.options),
        )


class ConstraintsFile(Constraints):
    """A file of constraints, which may hold budgets and name the tables that they limit.

    Parameters
    ----------
    budgets : tuple of str
        See `parse_budget`.
    tables : dict of str to str
        Quantity -> file of its costs; see `read_table`. Relative paths begin at the file.
    """

    budgets: tuple[Text, ...] = ()
    tables: dict[Text, Text] = Field(default_factory=dict)

    def constraints(self) -> Constraints:
        """The rules alone."""
        return Constraints(**{name: getattr(self, name) for name in Constraints.model_fields})


def converted(constraints: Constraints, convert: Callable[[str], str]) -> Constraints:
    """The constraints with every list of options converted; rules of which nothing is left are left out."""

    def each(kind: str, rules: Mapping[str, str]) -> dict[str, str]:
        read = {
            pattern: read_rule(f"{kind} {pattern}={text}", text, convert) for pattern, text in rules.items()
        }
        return {pattern: text for pattern, text in read.items() if text}

    forbid = each("forbid", {pattern: ",".join(texts) for pattern, texts in constraints.forbid.items()})
    return constraints.model_copy(
        update={
            "pin": each("pin", constraints.pin),
            "forbid": {pattern: tuple(text.split(",")) for pattern, text in forbid.items()},
            "options": each("options", constraints.options),
        }
    )


def value_rules(
    constraints: Constraints, activation_part: Callable[[str], str]
) -> list[tuple[str, str, list[str], bool]]:
    """What the rules say of values: the rule as messages name it, its pattern, options, whether to keep them.

    Rules that name no activations are left out.

    Parameters
    ----------
    activation_part : callable
        From a list of options, such as ``w4a6..8,w8``, to the activations that it names, ``a6,a7,a8``.
    """
    rules = converted(constraints, activation_part)
    found = []
    for pattern, text in rules.pin.items():
        found.append((f"pin {pattern}={constraints.pin[pattern]}", pattern, text.split(","), True))
    for pattern, texts in rules.forbid.items():
        written = ",".join(constraints.forbid[pattern])
        found.append((f"forbid {pattern}={written}", pattern, list(texts), False))
    for pattern, text in rules.options.items():
        found.append((f"options {pattern}={constraints.options[pattern]}", pattern, text.split(","), True))
    return found


def read_rule(rule: str, text: str, read: Callable[[str], Entry]) -> Entry:
    """What the options of a rule mean.

    Parameters
    ----------
    rule : str
        For the message, such as ``pin conv1=w8``.

    Raises
    ------
    InputError
        That of `read`, after the rule.
    """
    try:
        return read(text)
    except InputError as error:
        raise InputError(f"{rule}: {error}") from error


def read_constraints(path: Path) -> ConstraintsFile:
    """Read a TOML file with the fields of `ConstraintsFile`.

    Raises
    ------
    InputError
        Unreadable, not TOML, or with other fields or types; names the field.
    """
    what = f"constraints {path}"
    try:
        data = tomllib.loads(read_text(path, what))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{what} is not TOML: {error}") from error
    read = validate_document(data, ConstraintsFile, what)
    tables = {name: str(Path(path).parent / table) for name, table in read.tables.items()}
    return read.model_copy(update={"tables": tables})


def match_layers(pattern: str, names: Sequence[str], rule: str) -> list[int]:
    """Indices of the layers that a pattern means: that of its very name, else those that match.

    Parameters
    ----------
    rule : str
        For the message, such as ``pin conv1=w8``.

    Raises
    ------
    InputError
        None; the message has the nearest names.
    """
    if pattern in names:
        return [names.index(pattern)]
    found = [index for index, name in enumerate(names) if fnmatchcase(name, pattern)]
    if not found:
        near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or list(names)[:3]
        raise InputError(
            f"{rule}: '{pattern}' matches no layer; the nearest are {', '.join(near)} (* stands for any text)"
        )
    return found


def _merged(what: str, first: Mapping[str, Entry], second: Mapping[str, Entry]) -> dict[str, Any]:
    for pattern in first:
        if pattern in second and second[pattern] != first[pattern]:
            raise InputError(
                f"{what} {pattern} is given twice, as {first[pattern]} and as {second[pattern]}; keep one"
            )
    return {**first, **second}
