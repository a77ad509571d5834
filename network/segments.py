"""A schedule cut into segments that run one after the other, with few values alive between them."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .activations import ActivationStore
from .layer import Layer
from .network import Network
from .schedule import Schedule, Values, values_read

__all__ = ["Segment", "cut_segments", "kept_values", "learned_values"]


@dataclass(frozen=True)
class Segment:
    """Consecutive steps of a schedule.

    Attributes
    ----------
    begin, end : int
        Positions of the first step and of the first one after it.
    layers : tuple of Layer
        Those first used inside.
    again : tuple of Layer
        Those used inside, and before.
    """

    begin: int
    end: int
    layers: tuple[Layer, ...]
    again: tuple[Layer, ...] = ()


def cut_segments(network: Network, spans: Sequence[Sequence[Layer]]) -> tuple[Segment, ...]:
    """Cut the whole schedule so that each segment holds the first uses of a span of layers.

    Between two spans the cut is where the values that are alive weigh least. Spans between which only tuples
    are alive share a segment.

    Parameters
    ----------
    spans : sequence of sequence of Layer
        All layers of the network, in its order.
    """
    schedule = network.schedule
    weight = _live_elements(network)
    used = {layer.name: [schedule.position[node] for node in layer.nodes] for layer in network.layers}
    groups: list[tuple[int, int, tuple[Layer, ...]]] = []
    for span in spans:
        uses = [min(used[layer.name]) for layer in span]
        first, last, layers = min(uses), max(uses), tuple(span)
        while groups and _best_cut(weight, groups[-1][1], first) is None:
            before = groups.pop()
            first, layers = before[0], (*before[2], *layers)
        groups.append((first, last, layers))
    segments: list[Segment] = []
    begin = 0
    for index, (_, last, layers) in enumerate(groups):
        cut = None if index + 1 == len(groups) else _best_cut(weight, last, groups[index + 1][0])
        end = len(schedule.steps) if cut is None else cut
        again = [
            layer
            for layer in network.layers
            if min(used[layer.name]) < begin and any(begin <= at < end for at in used[layer.name])
        ]
        segments.append(Segment(begin, end, layers, tuple(again)))
        begin = end
    return tuple(segments)


def learned_values(schedule: Schedule) -> frozenset[str]:
    """Names of the values that depend on what a layer puts out."""
    found: set[str] = set()
    for step in schedule.steps:
        if step.call is not None or any(name in found for name in values_read(step)):
            found.add(step.name)
    return frozenset(found)


def kept_values(values: Values, store: ActivationStore) -> Values:
    """The values at a cut with every tensor put into a store."""
    return {name: _kept(value, store) for name, value in values.items()}


def _kept(value: Any, store: ActivationStore) -> Any:
    return store.keep(value) if isinstance(value, Tensor) else value


def _best_cut(weight: Sequence[float], last: int, first: int) -> int | None:
    """The position after step `last` and not after step `first` where the least is alive, or None."""
    places: Iterable[int] = range(last + 1, first + 1)
    best = min(places, key=weight.__getitem__, default=None)
    return None if best is None or weight[best] == float("inf") else best


def _live_elements(network: Network) -> list[float]:
    """Elements of one sample that are alive before every step; infinite where a tuple is."""
    schedule = network.schedule
    born = dict.fromkeys(schedule.inputs, 0) | {step.name: at + 1 for at, step in enumerate(schedule.steps)}
    dies = {schedule.output: len(schedule.steps)}
    for at, step in enumerate(schedule.steps):
        dies |= dict.fromkeys(values_read(step), at)
    change = [0.0] * (len(schedule.steps) + 2)
    tuples = [0] * (len(schedule.steps) + 2)
    for node in network.graph.nodes:
        if node.name not in born or node.name not in dies or dies[node.name] < born[node.name]:
            continue
        size = node.meta.get("elements", 0)
        if node.op == "placeholder":
            size = network.inputs[schedule.inputs.index(node.name)].elements if network.inputs else 0
        change[born[node.name]] += size
        change[dies[node.name] + 1] -= size
        if any(user.target is operator.getitem for user in node.users):
            tuples[born[node.name]] += 1
            tuples[dies[node.name] + 1] -= 1
    alive, whole, open_tuples = 0.0, [], 0
    for at in range(len(schedule.steps) + 1):
        alive += change[at]
        open_tuples += tuples[at]
        whole.append(float("inf") if open_tuples else alive)
    return whole
