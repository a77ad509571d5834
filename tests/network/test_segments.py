"""Segments are the whole schedule, one after the other, with the layers that they name inside."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from apportion.network import Network, capture, cut_segments, learned_values


class Split(nn.Module):
    """Heads that part and meet again, a value that skips all layers, and a layer used at both ends."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 12)
        self.second = nn.Linear(6, 12)
        self.third = nn.Linear(6, 6)
        self.both = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        skipped = x * 2
        left, right = self.first(self.both(x)).chunk(2, -1)
        up, down = self.second(left + right).relu().split(6, -1)
        logits: Tensor = self.both(self.third(up * down) + skipped)
        return logits


class Plain(nn.Sequential):
    """Layers in a row, the widest value in the middle of two of them."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))


def captured(module: nn.Module, features: int) -> Network:
    torch.manual_seed(0)
    return capture(module, torch.randn(3, features))


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize(("module", "features"), [(Split(), 6), (Plain(), 4)])
def test_segments_in_turn_are_the_network(module: nn.Module, features: int, size: int) -> None:
    network = captured(module, features)
    spans = [network.layers[start : start + size] for start in range(0, len(network.layers), size)]
    segments = cut_segments(network, spans)
    assert [layer for segment in segments for layer in segment.layers] == list(network.layers)
    assert segments[0].begin == 0
    assert segments[-1].end == len(network.schedule.steps)
    assert all(one.end == other.begin for one, other in pairwise(segments))
    for segment in segments:
        inside = range(segment.begin, segment.end)
        places = {
            layer: [network.schedule.position[node] for node in layer.nodes] for layer in network.layers
        }
        assert all(min(places[layer]) in inside for layer in segment.layers)
        for layer in network.layers:
            used = any(place in inside for place in places[layer])
            assert used == (layer in (*segment.layers, *segment.again))
    inputs = torch.randn(5, features)
    values = network.schedule.start([inputs])
    for segment in segments:
        assert not any(isinstance(value, (tuple, list)) for value in values.values())
        network.schedule.advance(values, network.tensors, segment.begin, segment.end)
    assert torch.equal(values[network.schedule.output], network.run(inputs))


def test_the_cut_is_where_the_least_is_alive() -> None:
    network = captured(Plain(), 4)
    segments = cut_segments(network, [[layer] for layer in network.layers])
    steps = network.schedule.steps
    # A result weighs the same before and after its activation function: the first such place is taken.
    assert [[step.name for step in steps[each.begin : each.end]] for each in segments] == [
        ["linear"],
        ["relu", "linear_1"],
        ["relu_1", "linear_2"],
    ]


def test_learned_values_are_those_behind_a_layer() -> None:
    network = captured(Split(), 6)
    learned = learned_values(network.schedule)
    assert network.schedule.output in learned
    assert "mul" not in learned
    assert "mul_1" in learned
