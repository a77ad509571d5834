"""What activations take at their fewest bits: what budgets can reach is known before anything is measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..allocator import Budget, Constraints, LiveStep
from ..network import Network, find_sites, live_values
from ..quantizer import parse_activation
from .activation_grids import ActivationSettings, check_sites, fitting_options
from .memory import memory_limit, refuse_memory_of_floats
from .site_rules import site_allowed

__all__ = ["Entering", "fewest_entering"]


class Entering(NamedTuple):
    """What layers may read.

    Parameters
    ----------
    fewest : dict of str to int
        Layer -> the least sum over what it reads of ``macs * bits``.
    widths : dict of str to list of str
        Layer -> activation options that what it reads may have; all where it reads no value.
    """

    fewest: dict[str, int]
    widths: dict[str, list[str]]


def fewest_entering(
    network: Network,
    budgets: Sequence[Budget],
    constraints: Constraints,
    settings: ActivationSettings | None,
) -> Entering | None:
    """What layers read at its fewest bits; None where activations stay float.

    Raises
    ------
    InputError
        A rule about activations that cannot be, or a budget of what they take while they stay float.
    InfeasibleError
        A budget of memory that the fewest bits do not meet.
    """
    layers = [layer.name for layer in network.layers]
    if settings is None:
        refuse_memory_of_floats(budgets)
        site_allowed(constraints, layers, {}, {}, ())
        return None
    sites = check_sites(network, settings)
    options = [str(option) for option in settings.options]
    allowed = site_allowed(
        constraints,
        layers,
        {site.name: [reader.layer for reader in site.readers] for site in sites},
        {site.name: list(map(str, fitting_options(site, settings.options))) for site in sites},
        options,
    )
    may = {
        site.name: [option for option, ok in zip(options, row, strict=True) if ok]
        for site, row in zip(sites, allowed, strict=True)
    }
    least, most = (
        {name: pick(parse_activation(option).bits for option in own) for name, own in may.items()}
        for pick in (min, max)
    )
    live = tuple(
        LiveStep(operation=each.operation, floats=each.floats, values=each.sites)
        for each in live_values(network, sites)
    )
    more = not settings.attention and len(find_sites(network, attention=True)) > len(sites)
    memory_limit(budgets, live, {site.name: site.elements for site in sites}, least, most, attention=more)
    fewest, widths = dict.fromkeys(layers, 0), dict[str, list[str]]()
    for site in sites:
        for reader in site.readers:
            fewest[reader.layer] += reader.macs * least[site.name]
            widths.setdefault(reader.layer, []).extend(may[site.name])
    return Entering(fewest, dict.fromkeys(layers, options) | widths)
