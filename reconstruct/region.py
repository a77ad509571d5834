"""A piece of the network between two of its values, as a network of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from ..network import Network, activation_entries, is_activation_key, is_by_sample, picked

__all__ = ["Region", "region_between"]


@dataclass(frozen=True)
class Region:
    """What computes one value of the network from another.

    Attributes
    ----------
    network : Network
        Its first input is the value at the entry. Where the piece reads sizes that the network takes from
        its own inputs, these follow.
    reads_inputs : bool
        Whether they do.
    reads_entry : bool
        Whether the exit depends on the entry; else it is a constant.
    """

    network: Network
    reads_inputs: bool
    reads_entry: bool

    def run(self, values: Tensor, inputs: Tensor, tensors: Mapping[str, Tensor] | None = None) -> Tensor:
        """The value at the exit.

        Parameters
        ----------
        values : Tensor
            At the entry.
        inputs : Tensor
            The network's own inputs of the same samples.
        tensors : mapping, optional
            Tensors to use in place of the network's; those that the region does not read are left out, and
            so is what quantizes values that it does not compute. Low bits of the value at the entry are
            given already, and giving them again changes nothing; it may be the network's own input.
        """
        given = tensors or {}
        replaced = {name: given[name] for name in given if self.reads(name)}
        return self.network.run((values, inputs) if self.reads_inputs else values, tensors=replaced)

    def reads(self, name: str) -> bool:
        """Whether a changed network's tensor of this name changes what the region computes."""
        if name in self.network.outlines:
            return True
        if not is_activation_key(name):
            return False
        (value,) = activation_entries({name: torch.empty(0)})
        inputs = self.network.schedule.inputs
        # Of the network's own inputs the region takes sizes alone.
        return value in self.network.schedule.position or (value == inputs[0] and self.reads_entry)

    def is_by_sample(self, pair: Tensor) -> bool:
        """Whether the value at the exit has its samples first, see `is_by_sample`; entered by the inputs.

        Parameters
        ----------
        pair : Tensor
            Two different samples of the network's inputs.
        """
        if not self.reads_entry:
            return False
        with torch.inference_mode():
            return is_by_sample(*(self.run(each, each) for each in (pair[:1], pair, pair[[0, 1, 0]])))


def region_between(network: Network, entry: str, exit_: str) -> Region:
    """Cut out the nodes that lead from `entry` to `exit_`.

    Parameters
    ----------
    entry, exit_ : str
        Names of nodes or inputs; every path from the network's input to `exit_` passes through `entry`,
        except for sizes and constants. Equal names give the identity.
    """
    nodes = {node.name: node for node in network.graph.nodes}
    needed = _between(nodes[entry], nodes[exit_])
    graph = fx.Graph()
    copied = {nodes[entry]: graph.placeholder(entry)}
    own = [node for node in network.graph.find_nodes(op="placeholder") if node in needed]
    for node in network.graph.nodes:
        if node in needed:
            copied[node] = graph.node_copy(node, copied.__getitem__)
    graph.output(copied[nodes[exit_]])
    read = {str(node.target) for node in graph.find_nodes(op="get_attr")}
    tensors = picked(network.tensors, [name for name in network.tensors if name in read])
    return Region(
        Network(graph, tensors, ()), reads_inputs=bool(own), reads_entry=bool(copied[nodes[entry]].users)
    )


def _between(entry: fx.Node, exit_: fx.Node) -> set[fx.Node]:
    """All that `exit_` depends on, not looking behind `entry`."""
    needed: set[fx.Node] = set()
    waiting = [exit_]
    while waiting:
        node = waiting.pop()
        if node is entry or node in needed:
            continue
        needed.add(node)
        waiting.extend(node.all_input_nodes)
    return needed
