"""Constraints matched with a network: which options every layer may take, and which layers agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .constraints import AUTO, Constraints, match_layers, read_rule

__all__ = ["Rules", "expand_auto", "match_rules"]

Expand = Callable[[str], Sequence[str]]


@dataclass(frozen=True, eq=False)
class Rules:
    """What constraints mean for a network's layers.

    Attributes
    ----------
    allowed : bool array (layers, options)
        Which options every layer may take; the same within a group.
    groups : tuple of tuple of int
        Layers that share one option, two or more each, ascending.
    reasons : dict of (layer, option) to str
        The rule that forbids an option, where one does, as messages name it.
    """

    allowed: NDArray[np.bool_]
    groups: tuple[tuple[int, ...], ...]
    reasons: dict[tuple[int, int], str]

    @property
    def tied(self) -> frozenset[int]:
        """Layers that are in a group."""
        return frozenset(row for group in self.groups for row in group)


def match_rules(
    constraints: Constraints,
    layers: Sequence[str],
    options: Sequence[str],
    expand: Expand,
    *,
    fits: NDArray[np.bool_] | None = None,
) -> Rules:
    """Match constraints with layers and options.

    Parameters
    ----------
    constraints : Constraints
        Without the tie ``auto``, see `expand_auto`.
    layers, options : sequence of str
        Names of the layers that are quantized; the option set.
    expand : callable
        From a list of options as a user writes it, such as ``w4..8``, to the options it names.
    fits : bool array (layers, options), optional
        Options that a layer can take at all; default: all.

    Raises
    ------
    InputError
        A pattern that matches no layer, an option that is not in the set, or rules that contradict each
        other; names the layer and the rules.
    """
    allowed = np.ones((len(layers), len(options)), np.bool_) if fits is None else fits.copy()
    reasons: dict[tuple[int, int], str] = {}
    for rule, pattern, kept in _masks(constraints, options, expand):
        for row in match_layers(pattern, layers, rule):
            for column in np.flatnonzero(~kept):
                allowed[row, column] = False
                reasons.setdefault((row, int(column)), rule)
    for row in np.flatnonzero(~allowed.any(1)).tolist():
        found = [reasons[row, column] for column in range(len(options)) if (row, column) in reasons]
        narrow = fits is not None and not fits[row].all()
        too_wide = " (some need more weights per channel than it has)" if narrow else ""
        raise InputError(
            f"layer '{layers[row]}' has no option left of {', '.join(options)}{too_wide} after "
            f"{'; '.join(dict.fromkeys(found))}; change one of these"
        )
    groups = _groups(constraints, layers)
    for group in groups:
        shared = allowed[list(group)].all(0)
        if not shared.any():
            raise InputError(_clash(group, layers, options, allowed))
        for row in group:
            for column in np.flatnonzero(allowed[row] & ~shared):
                reasons[row, int(column)] = f"tie {', '.join(layers[other] for other in group)}"
            allowed[row] = shared
    return Rules(allowed, groups, reasons)


def expand_auto(
    constraints: Constraints, layers: Sequence[str], reads: Sequence[Sequence[str]]
) -> Constraints:
    """Replace the tie ``auto`` by the groups of layers that read the same input.

    Parameters
    ----------
    reads : sequence of sequence of str
        For every layer, names of the values that enter it, one for each of its uses.

    Raises
    ------
    InputError
        ``auto`` was asked for, and no two layers read the same input.
    """
    if AUTO not in constraints.tie:
        return constraints
    readers: dict[tuple[str, ...], list[str]] = {}
    for name, values in zip(layers, reads, strict=True):
        if values:
            readers.setdefault(tuple(values), []).append(name)
    found = tuple(tuple(names) for names in readers.values() if len(names) > 1)
    if not found:
        raise InputError("tie auto: no two layers read the same input; leave it out, or name layers to tie")
    kept = tuple(tie for tie in constraints.tie if tie != AUTO)
    return constraints.model_copy(update={"tie": (*kept, *found)})


def _masks(
    constraints: Constraints, options: Sequence[str], expand: Expand
) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """The rule as messages name it, its pattern, and the options that it leaves, (options,)."""
    for pattern, option in constraints.pin.items():
        rule = f"pin {pattern}={option}"
        yield rule, pattern, _among(rule, [_one(rule, option, expand)], options)
    for pattern, texts in constraints.forbid.items():
        rule = f"forbid {pattern}={','.join(texts)}"
        yield rule, pattern, ~_among(rule, read_rule(rule, ",".join(texts), expand), options)
    for pattern, text in constraints.options.items():
        rule = f"options {pattern}={text}"
        yield rule, pattern, _among(rule, read_rule(rule, text, expand), options)


def _one(rule: str, text: str, expand: Expand) -> str:
    named = read_rule(rule, text, expand)
    if len(named) != 1:
        raise InputError(
            f"{rule}: a pin names one option, and this names {len(named)}; use options for several"
        )
    return named[0]


def _among(rule: str, named: Sequence[str], options: Sequence[str]) -> NDArray[np.bool_]:
    found = np.array([option in named for option in options], np.bool_)
    if not found.any():
        raise InputError(
            f"{rule}: {', '.join(named)} is not among the options {', '.join(options)} that have scores; add "
            "it to --options"
        )
    return found


def _groups(constraints: Constraints, layers: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Ties that share a layer are one group."""
    group_of = list(range(len(layers)))
    for tie in constraints.tie:
        if tie == AUTO:
            raise InputError(
                "tie auto means layers that read the same input, which are not known here; name the layers "
                "to tie"
            )
        patterns = (tie,) if isinstance(tie, str) else tie
        rule = f"tie {','.join(patterns)}"
        rows = {row for pattern in patterns for row in match_layers(pattern, layers, rule)}
        if len(rows) < 2:
            raise InputError(f"{rule}: only layer '{layers[rows.pop()]}' matches; a tie needs two layers")
        joined = {group_of[row] for row in rows}
        group_of = [min(joined) if group in joined else group for group in group_of]
    members = {group: [row for row, of in enumerate(group_of) if of == group] for group in group_of}
    return tuple(tuple(rows) for rows in members.values() if len(rows) > 1)


def _clash(
    group: Sequence[int], layers: Sequence[str], options: Sequence[str], allowed: NDArray[np.bool_]
) -> str:
    may = []
    for row in group:
        if not allowed[row].all():
            names = [options[column] for column in np.flatnonzero(allowed[row]).tolist()]
            may.append(f"'{layers[row]}' may have {', '.join(names)}")
    return f"tied layers have no option in common: {'; '.join(may[:4])}; change the tie, or a rule for them"
