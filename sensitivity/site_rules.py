"""What constraints say of the values that layers read: options such as ``w8a8`` name both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..allocator import Constraints, converted, match_layers, value_rules
from ..errors import InputError
from ..quantizer import activation_part, weight_part

__all__ = ["site_allowed", "weights_only"]


def weights_only(constraints: Constraints) -> Constraints:
    """The rules without what they say of activations."""
    return converted(constraints, weight_part)


def site_allowed(
    constraints: Constraints,
    layers: Sequence[str],
    readers: Mapping[str, Sequence[str]],
    fitting: Mapping[str, Sequence[str]],
    options: Sequence[str],
) -> NDArray[np.bool_]:
    """Which options every value may take, (values, options).

    A rule for a layer holds for all that the layer reads.

    Parameters
    ----------
    layers : sequence of str
        All layers.
    readers, fitting : mapping of str to sequence of str
        Layers that read each value, and options that fit it.
    options : sequence of str
        The option set; empty where activations stay float.

    Raises
    ------
    InputError
        A rule names activations that have no options, forbids weights and activations in one, or leaves a
        value without any option; names the value and the rules.
    """
    _check_forbidden(constraints)
    allowed = np.array([[option in fitting[name] for option in options] for name in readers], np.bool_)
    for rule, pattern, named, keep in value_rules(constraints, activation_part):
        unknown = sorted(set(named) - set(options))
        if unknown and (keep or not options):
            known = f"not among {', '.join(options)}" if options else "while activations stay float"
            raise InputError(
                f"{rule} names the activations {', '.join(unknown)}, {known}; add them to --options, such as "
                f"w4{unknown[0]}"
            )
        column = np.array([(option in named) == keep for option in options], np.bool_)
        matched = {layers[row] for row in match_layers(pattern, layers, rule)}
        for row, reading in enumerate(readers.values()):
            if matched.intersection(reading):
                allowed[row] &= column
    for name, row in zip(readers, allowed, strict=True):
        if not row.any():
            raise InputError(
                f"value '{name}', read by {', '.join(readers[name])}, has no option left of "
                f"{', '.join(options)} after the rules for these layers; change one of them"
            )
    return allowed


def _check_forbidden(constraints: Constraints) -> None:
    for pattern, texts in constraints.forbid.items():
        for text in texts:
            if weight_part(text) and activation_part(text):
                raise InputError(
                    f"forbid {pattern}={text} names weights and activations together, which are chosen "
                    f"apart; forbid {weight_part(text)} or {activation_part(text)}"
                )
