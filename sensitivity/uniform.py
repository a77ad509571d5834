"""One option for all layers, as far as constraints let them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..allocator import Constraints
from .facts import facts_of_profile, rules_of
from .problems import layer_scores
from .profile import Profile, ProfileArrays

__all__ = ["uniform_choices", "uniform_options"]


def uniform_choices(profile: Profile, constraints: Constraints | None = None) -> dict[str, NDArray[np.intp]]:
    """For every option that all layers can take, the option index of each layer, (layers,).

    A layer that constraints keep from the option takes the next larger that it may have, or else the next
    smaller.
    """
    facts = facts_of_profile(profile)
    allowed = rules_of(facts, profile.options, constraints or Constraints()).allowed
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
) -> dict[str, tuple[int, float]]:
    """Options that every layer can take: bits of all weights, and predicted loss, see `uniform_choices`.

    The prediction is the sum of the layers' scores, or of the strips' scores for units below the layer.
    """
    facts = facts_of_profile(profile)
    sizes = np.array([layer.size_bits for layer in facts])
    loss = layer_scores(profile)
    if unit != "layer" and arrays is not None:
        starts = np.cumsum([0, *(layer.cut.strips for layer in facts[:-1])])
        loss = np.add.reduceat(arrays.channel_loss.numpy(), starts)
    rows = np.arange(len(facts))
    return {
        option: (int(sizes[rows, taken].sum()), float(loss[rows, taken].sum()))
        for option, taken in uniform_choices(profile, constraints).items()
    }


def _nearest(allowed: NDArray[np.bool_], column: int) -> int:
    larger, smaller = np.flatnonzero(allowed[column:]), np.flatnonzero(allowed[:column])
    return int(column + larger[0] if len(larger) else smaller[-1])
