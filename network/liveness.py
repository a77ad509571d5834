"""Which values are in memory together while the program runs, from their last uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .sites import Site, data_values, elements, view_roots

if TYPE_CHECKING:
    from .network import Network

__all__ = ["LiveValues", "live_values"]


@dataclass(frozen=True)
class LiveValues:
    """What is in memory at one operation, for one sample.

    Attributes
    ----------
    operation : str
        The graph node, during which its inputs and its result are there.
    floats : int
        Numbers that are no sites.
    sites : tuple of str
        Values that can be stored in low bits.
    """

    operation: str
    floats: int
    sites: tuple[str, ...]


def live_values(network: Network, sites: Sequence[Site]) -> tuple[LiveValues, ...]:
    """What is in memory at the operations where most of it can be, in execution order.

    A value is there from the operation that computes it to the last that reads it, a view or a part of it.
    One that is no site and that only one pointwise operation reads (what a convolution gives to the relu
    after it, or to an addition) is computed into that operation's result and takes no memory; an operation
    does so with one of its inputs, the last computed. Stored tensors and what is computed from them alone
    are not counted.

    Operations at which no more of anything is there than at another are left out.
    """
    roots = view_roots(network.graph, parts=True)
    into = _computed_into(network, roots, {site.name for site in sites})
    nodes = {node.name: node for node in network.graph.nodes}
    order = {name: index for index, name in enumerate(nodes)}
    data = data_values(network.graph)
    last: dict[str, int] = {}
    for node in network.graph.nodes:
        place = order[_end(node.name, into)]
        for source in node.all_input_nodes:
            root = roots[source.name]
            last[root] = max(last.get(root, -1), place)
    output = roots[str(network.schedule.output)]
    last[output] = len(order)
    sizes = {
        name: elements(network, nodes[name]) for name in data if roots[name] == name and name not in into
    }
    known = {site.name for site in sites}
    found: list[LiveValues] = []
    alive: list[str] = []
    for name, index in order.items():
        if name in sizes:
            alive.append(name)
        if nodes[name].op == "call_function" and name in data and name not in into and roots[name] == name:
            here = tuple(each for each in alive if each in known)
            floats = sum(sizes[each] for each in alive if each not in known)
            found.append(LiveValues(name, floats, here))
        alive = [each for each in alive if last.get(each, -1) > index]
    return _greatest(found)


def _greatest(found: Sequence[LiveValues]) -> tuple[LiveValues, ...]:
    """Those that have more of something than each other; the first of equals."""
    kept: list[LiveValues] = []
    for each in found:
        if any(_covers(other, each) for other in kept):
            continue
        kept = [other for other in kept if not _covers(each, other)] + [each]
    return tuple(kept)


def _covers(more: LiveValues, less: LiveValues) -> bool:
    return more.floats >= less.floats and set(more.sites) >= set(less.sites)


def _computed_into(network: Network, roots: dict[str, str], sites: set[str]) -> dict[str, str]:
    """Values that take no memory, with the pointwise operation that each is computed into."""
    into: dict[str, str] = {}
    place = {node: number for number, node in enumerate(network.graph.nodes)}
    for node in place:
        target = node.target
        if not (isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags):
            continue
        for source in sorted(set(node.all_input_nodes), key=place.__getitem__, reverse=True):
            own = source.op == "call_function" and roots[source.name] == source.name
            alone = own and len(source.users) == 1 and source.name not in sites
            if alone and "elements" in source.meta and elements(network, source) == elements(network, node):
                into[source.name] = node.name
                break
    return into


def _end(name: str, into: dict[str, str]) -> str:
    while name in into:
        name = into[name]
    return name
