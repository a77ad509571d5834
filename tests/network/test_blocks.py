"""Blocks: single-entry single-exit pieces in a chain, every layer in one of them."""

from __future__ import annotations

import networkx as nx
import torch
from torch import Tensor, nn

from apportion.network import Network, capture


def shown(network: Network) -> list[list[str]]:
    return [[layer.name for layer in block.layers] for block in network.blocks]


def check_laws(network: Network) -> None:
    """Blocks follow each other, hold every layer once, and cutting a block's exit cuts input from output."""
    layers = [layer for block in network.blocks for layer in block.layers]
    assert sorted(layer.name for layer in layers) == sorted(layer.name for layer in network.layers)
    for before, after in zip(network.blocks, network.blocks[1:], strict=False):
        assert before.exit == after.entry
    output = str(network.graph.output_node().args[0])
    assert network.blocks[-1].exit == output
    flow = nx.DiGraph()
    for node in network.graph.nodes:
        if node.op == "placeholder" or "elements" in node.meta:
            flow.add_edges_from((source.name, node.name) for source in node.all_input_nodes)
    for block in network.blocks[:-1]:
        cut = flow.copy()
        cut.remove_node(block.exit)
        assert not any(name in cut and nx.has_path(cut, name, output) for name in network.schedule.inputs)


def test_a_residual_block_is_one_block_and_each_layer_of_a_chain_is_one(mixed_network: Network) -> None:
    check_laws(mixed_network)
    # `mix` is applied twice, and belongs where it is applied first.
    assert shown(mixed_network) == [["stem"], ["depthwise", "grouped"], ["mix"], ["head"]]


class Dense(nn.Module):
    """Layers whose outputs are all concatenated: nothing inside is passed by every path."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(8, 4)
        self.third = nn.Linear(12, 4)
        self.last = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, self.first(x)], 1)
        x = torch.cat([x, self.second(x)], 1)
        return self.last(torch.cat([x, self.third(x)], 1))


def test_blocks_with_branches_follow_their_joins() -> None:
    network = capture(Dense(), torch.randn(2, 4))
    check_laws(network)
    assert shown(network) == [["first"], ["second"], ["third"], ["last"]]


class LongSkip(nn.Module):
    """A skip over everything but the head: one block."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.layers(x))


def test_layers_under_a_long_skip_are_one_block() -> None:
    network = capture(LongSkip(), torch.randn(2, 4))
    check_laws(network)
    assert shown(network) == [["layers.0", "layers.2", "layers.4"], ["head"]]


class Conditioned(nn.Module):
    """A layer that works on constants alone, whose result joins in the second block."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 3))
        self.shift = nn.Linear(3, 4)
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        shift = self.shift(torch.tanh(self.table))
        x = x + self.first(x).relu()
        return x + self.second(x) * shift


def test_a_layer_on_constants_belongs_where_its_result_is_first_used() -> None:
    network = capture(Conditioned(), torch.randn(2, 4))
    check_laws(network)
    assert shown(network) == [["first"], ["shift", "second"]]
    # And is computed once for all samples.
    assert {layer.name: layer.macs for layer in network.layers}["shift"] == 12


def test_a_block_does_not_end_in_a_comparison() -> None:
    class Binary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.second = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(((self.first(x) + 1).relu() > 1).float())

    network = capture(Binary(), torch.randn(2, 4))
    check_laws(network)
    assert shown(network) == [["first"], ["second"]]
    assert network.blocks[0].exit == "relu"


class TwoInputs(nn.Module):
    """A layer for each input, then one for both."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(4, 4)
        self.right = nn.Linear(3, 4)
        self.both = nn.Linear(4, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.both(self.left(x) * self.right(y))


def test_layers_that_several_inputs_enter_are_one_block() -> None:
    network = capture(TwoInputs(), (torch.randn(2, 4), torch.randn(2, 3)))
    check_laws(network)
    assert shown(network) == [["left", "right"], ["both"]]
    assert network.blocks[0].entry == "(input)"


def test_sizes_and_values_made_from_shapes_do_not_tie_blocks_together() -> None:
    class Shaped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.second = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            ones = torch.ones_like(x)
            y = self.first(x) + x
            return self.second(y).view(x.shape[0], 4) * ones + y

    network = capture(Shaped(), torch.randn(2, 4))
    assert shown(network) == [["first"], ["second"]]
