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

_Settled = tuple[SiteOptions, Tensor]


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
        scores in any case, unless weights are streamed.

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
    loss of a few samples decides; where a replay would read the weights again, the first range stays.

    Raises
    ------
    InputError
        A score is NaN or infinite; names the value and the option.
    """
    replayed = [row for row, site in enumerate(sites) if site.massive or method == "exact"]
    given = list(sites)
    if network.is_streamed:
        for row in replayed:
            given[row] = sites[row].only([columns[0] for columns in _ranges(sites[row])])
        replayed = replayed if method == "exact" else []
    scored = [row for row in range(len(sites)) if row not in replayed]
    found: dict[int, _Settled] = {}
    if scored:
        by_scores = score_activations(
            network, data, [given[row] for row in scored], settings, on_progress=on_progress
        )
        for row, losses in zip(scored, by_scores.losses.unbind(1), strict=True):
            found[row] = _taken(given[row], losses, better_columns(given[row], losses))
    if replayed:
        by_replays = _replayed(network, data, [given[row] for row in replayed], on_progress)
        found |= zip(replayed, by_replays, strict=True)
    options = max(len(site.options) for site, _ in found.values())
    together = torch.zeros(len(data.inputs), len(sites), options, dtype=torch.float64)
    for row, (site, losses) in found.items():
        together[:, row, : len(site.options)] = losses
    return tuple(found[row][0] for row in range(len(sites))), ActivationScores(together)


def _replayed(
    network: Network,
    data: Data,
    sites: Sequence[SiteOptions],
    on_progress: Callable[[int, int], None] | None,
) -> list[_Settled]:
    """By exact scores: of some samples for all ranges, and then of all samples for the best."""
    few = data.part(slice(None, None, max(1, len(data.inputs) // CHOSEN_ON)))
    tried = score_activations_exact(network, few, sites, on_progress=on_progress)
    best = []
    for site, losses in zip(sites, tried.losses.unbind(1), strict=True):
        means = losses.mean(0).tolist()
        least = [min(columns, key=means.__getitem__) for columns in _ranges(site)]
        best.append(_taken(site, losses, least))
    if len(few.inputs) == len(data.inputs):
        return best
    settled = [site for site, _ in best]
    whole = score_activations_exact(network, data, settled, on_progress=on_progress)
    return [
        (site, losses[:, : len(site.options)])
        for site, losses in zip(settled, whole.losses.unbind(1), strict=True)
    ]


def _taken(site: SiteOptions, losses: Tensor, columns: list[int]) -> _Settled:
    return site.only(columns), losses[:, columns]


def _ranges(site: SiteOptions) -> list[list[int]]:
    """The columns of every option."""
    columns: dict[ActivationOption, list[int]] = {}
    for column, option in enumerate(site.options):
        columns.setdefault(option, []).append(column)
    return list(columns.values())


def better_columns(site: SiteOptions, losses: Tensor) -> list[int]:
    """The column of every option: its first, or of those that lose less by more than chance the best."""
    means, chosen = losses.mean(0).tolist(), []
    for first, *others in _ranges(site):
        sure = [other for other in others if mean_drop(losses[:, first] - losses[:, other]).low > 0]
        chosen.append(min((first, *sure), key=means.__getitem__))
    return chosen
