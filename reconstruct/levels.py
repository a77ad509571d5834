"""Positions of outlying energy, which count less in a squared error."""

from __future__ import annotations

from torch import Tensor

__all__ = ["level_weights"]

ORDINARY, MOST_ENERGY = 0.9, 3.0
"""Share of positions that are taken for ordinary, and how much more than these one counts at most."""


def level_weights(energy: Tensor) -> Tensor | None:
    """Weights of positions with which none counts more than three times what nine in ten have at most.

    Transformers have a few tokens with activations a hundred times those of others (Sun et al., "Massive
    activations in large language models", COLM 2024); a layer norm takes their size away again, but squared
    errors would be of them alone, and what is fitted to these gives up all other tokens.

    Parameters
    ----------
    energy : Tensor, shape (positions,)
        Sum of squares of each position's values.

    Returns
    -------
    Tensor, shape (positions,), or None
        ``min(1, most / energy)``; None where no energy is outlying.
    """
    place = max(1, round(ORDINARY * len(energy)))
    most = MOST_ENERGY * energy.kthvalue(place).values
    if bool(most == 0) or bool((energy <= most).all()):
        return None
    return (most / energy).clamp(max=1.0)
