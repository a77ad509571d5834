"""What activations take at their fewest bits: what budgets can reach is known before anything is measured."""

from __future__ import annotations

from collections.abc import Sequence

from ..allocator import Budget, Constraints, LiveStep
from ..network import Network, live_values
from ..quantizer import parse_activation
from .activation_grids import ActivationSettings, check_sites, fitting_options
from .memory import memory_limit, refuse_memory_of_floats
from .site_rules import site_allowed

__all__ = ["fewest_entering"]


def fewest_entering(
    network: Network,
    budgets: Sequence[Budget],
    constraints: Constraints,
    settings: ActivationSettings | None,
) -> dict[str, int] | None:
    """For every layer the least sum over what it reads of ``macs * bits``; None where activations stay float.

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
    bits = [parse_activation(option).bits for option in options]
    may = {
        site.name: [width for width, ok in zip(bits, row, strict=True) if ok]
        for site, row in zip(sites, allowed, strict=True)
    }
    least, most = ({name: pick(widths) for name, widths in may.items()} for pick in (min, max))
    live = tuple(
        LiveStep(operation=each.operation, floats=each.floats, values=each.sites)
        for each in live_values(network, sites)
    )
    memory_limit(budgets, live, {site.name: site.elements for site in sites}, least, most)
    entering = dict.fromkeys(layers, 0)
    for site in sites:
        for reader in site.readers:
            entering[reader.layer] += reader.macs * least[site.name]
    return entering
