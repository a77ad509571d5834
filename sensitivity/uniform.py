"""One option for all layers, as far as constraints let them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..allocator import Constraints
from ..quantizer import parse_activation
from .facts import facts_of_profile, rules_of
from .problems import layer_scores
from .profile import Profile, ProfileArrays
from .widths import profile_site_allowed

__all__ = ["uniform_choices", "uniform_options", "uniform_widths"]

END_BITS = 8
"""Of the first and the last layer, where these are the exception that published tables make."""


def uniform_choices(
    profile: Profile, constraints: Constraints | None = None, *, ends: bool = False
) -> dict[str, NDArray[np.intp]]:
    """For every option that all layers can take, the option index of each layer, (layers,).

    A layer that constraints keep from the option takes the next larger that it may have, or else the next
    smaller.

    Parameters
    ----------
    ends : bool
        The first and the last layer have 8 bits, as far as they may, and where they are not tied to others.
    """
    facts = facts_of_profile(profile)
    rules = rules_of(facts, profile.options, constraints or Constraints())
    allowed = rules.allowed
    if ends:
        bits = [option.bits * option.points for option in profile.parsed_options()]
        allowed = _with_ends(allowed, {0, len(facts) - 1} - rules.tied, bits)
    found = {}
    for column, option in enumerate(profile.options):
        if all(layer.fits[column] for layer in facts):
            found[option] = np.array([_nearest(row, column) for row in allowed], np.intp)
    return found


def uniform_options(
    profile: Profile,
    arrays: ProfileArrays | None = None,
    unit: str = "layer",
    constraints: Constraints | None = None,
    *,
    ends: bool = False,
) -> dict[str, tuple[int, float]]:
    """Options that every layer can take: bits of all weights, and predicted loss, see `uniform_choices`.

    The prediction is the sum of the layers' scores, or of the strips' scores for units below the layer. Where
    values have options too, they are named and counted with every one of these, such as ``w4a8``.
    """
    facts = facts_of_profile(profile)
    sizes = np.array([layer.size_bits for layer in facts])
    loss = layer_scores(profile)
    if unit != "layer" and arrays is not None:
        starts = np.cumsum([0, *(layer.cut.strips for layer in facts[:-1])])
        loss = np.add.reduceat(arrays.channel_loss.numpy(), starts)
    rows = np.arange(len(facts))
    sites = () if profile.activations is None else profile.activations.sites
    besides = {
        name: math.fsum(site.loss(width) for site, width in zip(sites, widths, strict=True))
        for name, widths in uniform_widths(profile, constraints, ends=ends).items()
    }
    return {
        f"{option}{width}": (int(sizes[rows, taken].sum()), float(loss[rows, taken].sum()) + added)
        for option, taken in uniform_choices(profile, constraints, ends=ends).items()
        for width, added in besides.items()
    }


def uniform_widths(
    profile: Profile, constraints: Constraints | None = None, *, ends: bool = False
) -> dict[str, tuple[str, ...]]:
    """For every option of values, the one that each of them takes, as `uniform_choices` does for layers.

    One entry where all stay float. With `ends`, what the first and the last layer read has 8 bits.
    """
    if profile.activations is None:
        return {"": ()}
    allowed = profile_site_allowed(profile, constraints or Constraints())
    options = profile.activations.options
    if ends:
        both = {profile.layers[0].name, profile.layers[-1].name}
        read = {row for row, site in enumerate(profile.activations.sites) if both.intersection(site.readers)}
        allowed = _with_ends(allowed, read, [parse_activation(option).bits for option in options])
    return {
        option: tuple(options[_nearest(row, column)] for row in allowed)
        for column, option in enumerate(options)
    }


def _with_ends(allowed: NDArray[np.bool_], rows: set[int], bits: Sequence[int]) -> NDArray[np.bool_]:
    """What is allowed where these rows have 8 bits, as far as they may."""
    eight = np.array(bits) == END_BITS
    return np.array(
        [row & eight if index in rows and (row & eight).any() else row for index, row in enumerate(allowed)]
    )


def _nearest(allowed: NDArray[np.bool_], column: int) -> int:
    larger, smaller = np.flatnonzero(allowed[column:]), np.flatnonzero(allowed[:column])
    return int(column + larger[0] if len(larger) else smaller[-1])
