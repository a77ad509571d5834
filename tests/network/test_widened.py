"""A network in half precision, computed with in float32: the same program, with the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from apportion.errors import InputError
from apportion.network import Data, Network, StreamedTensors, capture, widened


class Changing(nn.Module):
    """Changes types on its way: to those of its weights, to float32, back, and to float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        kind = self.first.weight.dtype
        x = self.first(x.to(kind)).float().softmax(-1).to(kind)
        x = x + torch.ones(8, dtype=kind) * torch.full((8,), 3.0).type_as(x)
        logits: Tensor = self.last(self.second(x).relu().double().to(kind))
        return logits


def module_in(kind: torch.dtype) -> nn.Module:
    """Numbers that the type holds, in that type."""
    return Changing().to(kind).eval()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("given", [torch.float32, None])
def test_a_widened_network_is_the_module_in_float32(kind: torch.dtype, given: torch.dtype | None) -> None:
    inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).to(kind).to(given or kind)
    network = capture(module_in(kind), inputs)
    wide = network.widened()
    with torch.no_grad():
        before, found = network.run(inputs), wide.run(inputs.float())
        expected = module_in(kind).float()(inputs.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    assert not torch.equal(before.float(), expected)
    assert wide.inputs[0].dtype == torch.float32
    assert {tensor.dtype for tensor in wide.tensors.values()} == {torch.float32}
    # Names and what is kept with them are those of the network, and so is its size.
    assert wide.layers == network.layers
    assert wide.schedule.position == network.schedule.position
    assert [node.meta for node in wide.graph.nodes] == [node.meta for node in network.graph.nodes]
    assert wide.float_bits == network.float_bits
    assert wide.blocks == network.blocks
    with torch.no_grad():
        assert torch.equal(network.run(inputs), before)


def test_layers_that_were_left_out_stay_so() -> None:
    inputs = torch.randn(2, 4)
    network = capture(module_in(torch.float16), inputs).without(["second"], "asked for")
    wide = network.widened()
    assert wide.excluded == ("second",)
    assert wide.layers == network.layers
    assert wide.skipped == network.skipped


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_a_network_without_half_precision_is_itself(kind: torch.dtype) -> None:
    network = capture(nn.Linear(4, 3).to(kind), torch.zeros(2, 4, dtype=kind))
    assert network.widened() is network


def test_a_program_alone_may_be_in_half_precision() -> None:
    class Halved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return (self.layer(x).half() * 3).float()

    module, inputs = Halved(), torch.randn(2, 4)
    wide = capture(module, inputs).widened()
    torch.testing.assert_close(wide.run(inputs), 3 * module.layer(inputs))


def test_streamed_tensors_are_widened_as_they_are_read() -> None:
    inputs = torch.randn(2, 4)
    network = capture(module_in(torch.bfloat16), inputs)
    asked: list[str] = []

    def read(name: str) -> Tensor:
        asked.append(name)
        return network.tensors[name]

    outlines = {name: tensor.to("meta") for name, tensor in network.tensors.items()}
    streamed = StreamedTensors(outlines, read, torch.device("cpu"), 2**20)
    wide = Network(network.graph, streamed, network.inputs).widened()
    assert wide.is_streamed
    assert not asked
    assert {outline.dtype for outline in wide.outlines.values()} == {torch.float32}
    assert torch.equal(wide.tensors["last.weight"], widened(network.tensors["last.weight"]))
    assert asked == ["last.weight"]
    torch.testing.assert_close(wide.run(inputs), network.widened().run(inputs))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_data_is_taken_in_the_networks_floats(kind: torch.dtype) -> None:
    network = capture(nn.Linear(4, 3).to(kind), torch.zeros(2, 4, dtype=kind))
    inputs = torch.randn(6, 4)
    labels = torch.arange(6) % 3
    taken = Data(inputs, labels, "normal", [5, 4, 3, 2, 1, 0]).taken_by(network)
    assert torch.equal(taken.inputs, inputs.to(kind))
    assert taken.labels is labels
    assert taken.numbers == [5, 4, 3, 2, 1, 0]


def test_token_ids_are_taken_as_they_are() -> None:
    ids = torch.zeros(2, 4, dtype=torch.int64)
    network = capture(nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3)).half(), ids)
    assert torch.equal(Data(ids, None, "ids").taken_by(network).inputs, ids)


def test_values_beyond_a_networks_type_are_refused() -> None:
    network = capture(nn.Linear(4, 3).half(), torch.zeros(2, 4).half())
    with pytest.raises(
        InputError, match=r"large has values up to 70000; the network takes float16, which ends"
    ):
        Data(torch.full((2, 4), 7e4), None, "large").taken_by(network)
