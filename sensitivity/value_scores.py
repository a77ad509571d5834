"""Scores of all values, each option with the one range that costs the network least."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from ..network import Data, Network, mean_drop
from ..quantizer import ActivationOption
from .activation_grids import SiteOptions
from .activation_scores import ActivationScores, score_activations, score_activations_exact
from .fisher import FisherSettings

__all__ = ["score_values"]

CHOSEN_ON = 32


def score_values(
    network: Network,
    data: Data,
    sites: Sequence[SiteOptions],
    method: Literal["fisher", "exact"],
    settings: FisherSettings,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[tuple[SiteOptions, ...], ActivationScores]:
    """Choose the ranges of all options of all values, and score them.

    Parameters
    ----------
    method : "fisher" or "exact"
        See `score_activations` and `score_activations_exact`. Values that lean on few numbers have exact
        scores in any case, unless every replay would read the weights again.

    Returns
    -------
    tuple of SiteOptions
        Every option once.
    ActivationScores
        Of these.

    Notes
    -----
    By Fisher scores, the first range of an option gives way to others only where these lose less by more
    than chance, all samples considered. Exact ones take a replay of the network for each, so that the least
    loss of a few samples decides.

    Raises
    ------
    InputError
        A score is NaN or infinite; names the value and the option.
    """
    replayed = [(site.massive and not network.is_streamed) or method == "exact" for site in sites]
    measured = [row for row, wanted in enumerate(replayed) if wanted]
    smooth = [row for row, wanted in enumerate(replayed) if not wanted]
    settled = list(sites)
    losses = torch.zeros(len(data.inputs), len(sites), max(len(set(site.options)) for site in sites))
    losses = losses.double()
    if smooth:
        scores = score_activations(
            network, data, [sites[row] for row in smooth], settings, on_progress=on_progress
        )
        for row, of_site in zip(smooth, scores.losses.unbind(1), strict=True):
            columns = _better(sites[row], of_site)
            settled[row] = sites[row].only(columns)
            losses[:, row, : len(columns)] = of_site[:, list(columns)]
    if measured:
        few = data.part(slice(None, None, max(1, len(data.inputs) // CHOSEN_ON)))
        tried = score_activations_exact(network, few, [sites[row] for row in measured])
        for row, means in zip(measured, tried.loss, strict=True):
            settled[row] = sites[row].only(_least(sites[row], means))
        scores = score_activations_exact(
            network, data, [settled[row] for row in measured], on_progress=on_progress
        )
        losses[:, measured, : scores.losses.shape[2]] = scores.losses
    return tuple(settled), ActivationScores(losses)


def _better(site: SiteOptions, losses: Tensor) -> tuple[int, ...]:
    """The column of every option: its first, or of those that lose less by more than chance the best."""
    means, best = losses.mean(0), dict[ActivationOption, int]()
    for column, option in enumerate(site.options):
        first = site.options.index(option)
        saved = mean_drop(losses[:, first] - losses[:, column]).low
        if column == first or (saved > 0 and means[column] < means[best[option]]):
            best[option] = column
    return tuple(best.values())


def _least(site: SiteOptions, means: Tensor) -> tuple[int, ...]:
    """The column of least loss of every option."""
    best: dict[ActivationOption, int] = {}
    for column, option in enumerate(site.options):
        if option not in best or means[column] < means[best[option]]:
            best[option] = column
    return tuple(best.values())
