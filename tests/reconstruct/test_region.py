"""Regions of the network and the activations at their ends."""

from __future__ import annotations

from copy import copy
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from apportion.network import Activations, ActivationStore, Block, Data, Network, capture
from apportion.reconstruct import Learning
from apportion.reconstruct.layer_inputs import input_gram
from apportion.reconstruct.learn import UnitData, _batch_error
from apportion.reconstruct.region import region_between
from apportion.reconstruct.streams import Streams, walkable_blocks
from apportion.reconstruct.units import unit_data


def test_regions_of_all_blocks_in_turn_are_the_network(network: Network, data: Data) -> None:
    blocks = walkable_blocks(network, data)
    value = data.inputs
    for block in blocks:
        value = region_between(network, block.entry, block.exit).run(value, data.inputs)
    assert torch.equal(value, network.run(data.inputs))
    assert all(one.exit == other.entry for one, other in pairwise(blocks))


def test_a_region_from_a_value_to_itself_is_the_identity(network: Network) -> None:
    name = network.blocks[1].exit
    value = torch.randn(2, 3)
    assert torch.equal(region_between(network, name, name).run(value, value), value)


def test_a_region_takes_the_tensors_that_it_reads_and_leaves_the_others(network: Network, data: Data) -> None:
    block = network.blocks[0]
    region = region_between(network, block.entry, block.exit)
    zeros = {layer.weight: torch.zeros(layer.shape) for layer in network.layers}
    own = {layer.weight: zeros[layer.weight] for layer in block.layers}
    replaced = region.run(data.inputs, data.inputs, zeros)
    assert torch.equal(replaced, region.run(data.inputs, data.inputs, own))
    assert not torch.equal(replaced, region.run(data.inputs, data.inputs))


class TokensFirst(nn.Module):
    """Between its layers the tokens come before the samples, and sizes are read from the input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 8)
        self.second = nn.Linear(8, 8)
        self.third = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x.transpose(0, 1)).relu())
        out: Tensor = self.third(y.transpose(0, 1).reshape(x.shape[0], x.shape[1], 8)).mean(1)
        return out


def test_blocks_are_joined_where_samples_do_not_come_first() -> None:
    inputs = torch.randn(10, 5, 4, generator=torch.Generator().manual_seed(0))
    network, data = capture(TokensFirst(), inputs), Data(inputs, None, "normal")
    assert len(network.blocks) > 1
    (block,) = walkable_blocks(network, data)
    assert isinstance(block, Block)
    assert [layer.name for layer in block.layers] == ["first", "second", "third"]
    region = region_between(network, block.layers[0].nodes[0], block.exit)
    value = region_between(network, block.entry, block.layers[0].nodes[0]).run(inputs, inputs)
    assert torch.equal(region.run(value, inputs), network.run(inputs))


class TokensFirstFromTheStart(nn.Module):
    """The tokens come before the samples where the first block with branches begins."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inside = nn.Linear(4, 4)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        out: Tensor = self.last((x + self.inside(x).relu()).mean(0))
        return out


def test_the_first_block_begins_at_the_input_where_samples_do_not_come_first() -> None:
    inputs = torch.randn(70, 5, 4, generator=torch.Generator().manual_seed(0))
    network, data = capture(TokensFirstFromTheStart(), inputs[:2]), Data(inputs, None, "normal")
    assert network.blocks[0].entry not in network.schedule.inputs
    block, *_ = walkable_blocks(network, data)
    assert block.entry == network.schedule.inputs[0]
    with ActivationStore(2**30) as store:
        streams = Streams(network, data, store, with_float=True)
        streams.advance(block.entry)
        values, _ = streams.at(streams.region(network.schedule.output))
    assert torch.allclose(values.values, network.run(inputs))


def test_the_first_block_begins_where_it_did_where_samples_come_first() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = 2 * x
            out: Tensor = self.last(x + self.inside(x).relu())
            return out

    inputs = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    network = capture(Scaled(), inputs[:2])
    assert walkable_blocks(network, Data(inputs, None, "normal")) == network.blocks
    assert network.blocks[0].entry not in network.schedule.inputs


def test_streams_carry_what_both_networks_compute(network: Network, data: Data) -> None:
    block = walkable_blocks(network, data)[0]
    halved = {layer.weight: network.weight(layer) / 2 for layer in block.layers}
    region = region_between(network, block.entry, block.exit)
    with ActivationStore(2**30) as store:
        streams = Streams(network, data, store, with_float=True)
        streams.advance(block.entry)
        assert streams.quantized is streams.floating
        streams.replaced.update(halved)
        streams.advance(block.exit)
        for values, tensors in ((streams.quantized, halved), (streams.floating, None)):
            expected = region.run(data.inputs, data.inputs, tensors)
            assert torch.equal(values.take(slice(0, len(data.inputs))), expected)


def test_positions_are_drawn_of_tokens_that_are_folded_into_the_samples_too() -> None:
    class Folded(nn.Module):
        def __init__(self, fold: bool) -> None:
            super().__init__()
            self.fold, self.first, self.last = fold, nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x.reshape(-1, 8)).reshape(x.shape[0], -1, 8) if self.fold else self.first(x)
            out: Tensor = self.last(y.relu()).mean(1)
            return out

    data = Data(torch.randn(64, 2048, 8, generator=torch.Generator().manual_seed(0)), None, "noise")
    drawn, whole = [], []
    for fold in (False, True):
        torch.manual_seed(0)
        network = capture(Folded(fold).eval(), data.inputs[:2])
        with ActivationStore(2**30) as store:
            streams = Streams(network, data, store, with_float=False)
            for found, positions in (drawn, 1), (whole, 2**20):
                found.append(
                    input_gram(
                        streams,
                        network.layers[0],
                        range(64),
                        cross=False,
                        positions=positions,
                        levelled=False,
                    ).gram
                )
    torch.testing.assert_close(drawn[0], drawn[1])
    assert not torch.allclose(drawn[0], whole[0], rtol=1e-4)
    torch.testing.assert_close(drawn[0], whole[0], rtol=0.1, atol=2e3)


def test_samples_are_learned_from_where_the_network_is() -> None:
    module = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    network = capture(module, torch.randn(2, 8))
    with FakeTensorMode():
        away = copy(network)
        away.tensors = {
            name: torch.empty(tensor.shape, device="cuda") for name, tensor in network.tensors.items()
        }
        region = region_between(away, away.schedule.inputs[0], away.schedule.output)
        # The network's own inputs are on the CPU, and so is what does not fit into memory.
        inputs, values = (Activations(torch.empty(16, width)) for width in (8, 4))
        data = UnitData(inputs, Activations(torch.empty(16, 8)), values, values, inputs)
        error = _batch_error(region, data, {}, {}, 16, Learning(drop=0.5), torch.Generator())
        assert error.device.type == "cuda"


class Columns(nn.Module):
    """Columns of an image, as maps and then as tokens, the first a hundred times the others."""

    size: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 8, (4, 1)), nn.Linear(8, 5)
        self.register_buffer("size", torch.tensor([100.0, *[1.0] * 19]))

    def forward(self, images: Tensor) -> Tensor:
        maps = self.size * self.conv(images)
        tokens: Tensor = self.linear(maps.flatten(2).mT)
        return tokens


def test_a_position_a_hundred_times_the_others_counts_as_three_of_them() -> None:
    torch.manual_seed(0)
    data = Data(torch.randn(64, 3, 4, 20), None, "columns")
    network = capture(Columns().eval(), data.inputs[:2])
    blocks = walkable_blocks(network, data)
    with ActivationStore(2**30) as store:
        streams = Streams(network, data, store, with_float=True)
        for block, shape in zip(blocks, [(64, 1, 1, 20), (64, 20, 1)], strict=True):
            streams.advance(block.entry)
            _, unit = unit_data(streams, block, block.layers, fisher=False, seed=0)
            assert unit.importance is not None
            weights = unit.importance.values
            assert weights.shape == shape
            energy = unit.target.values.square().sum(shape.index(1), keepdim=True)
            ordinary = energy.flatten().kthvalue(round(0.9 * energy.numel())).values
            torch.testing.assert_close(weights, (3 * ordinary / energy).clamp(max=1.0))
            assert float(weights.squeeze()[:, 0].mean()) < 0.1


class Permuted(nn.Module):
    """Tokens multiplied with their channels last, and put first again, as in ConvNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, maps: Tensor) -> Tensor:
        inner = self.narrow(self.wide(maps.permute(0, 2, 3, 1)).relu()).permute(0, 3, 1, 2)
        out: Tensor = self.head((maps + inner).mean((2, 3)))
        return out


def test_positions_count_alike_where_the_channels_are_on_an_unknown_axis() -> None:
    torch.manual_seed(0)
    images = torch.randn(32, 8, 6, 6)
    images[:, 3] *= 100
    data = Data(images, None, "a loud channel")
    network = capture(Permuted().eval(), images[:2])
    block = walkable_blocks(network, data)[0]
    assert [layer.name for layer in block.layers] == ["wide", "narrow"]
    with ActivationStore(2**30) as store:
        streams = Streams(network, data, store, with_float=True)
        streams.advance(block.entry)
        _, unit = unit_data(streams, block, block.layers, fisher=False, seed=0)
        assert unit.importance is None


class Root(nn.Module):
    """The root of the mean square of every channel, whose slope is infinite where a channel is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, maps: Tensor) -> Tensor:
        out: Tensor = self.head(self.conv(maps).relu().square().mean((2, 3)).sqrt())
        return out


def test_a_sample_whose_slopes_are_not_finite_has_weights_of_one() -> None:
    torch.manual_seed(0)
    module = Root().eval()
    images = torch.randn(80, 3, 6, 6)
    with torch.no_grad():
        module.conv.bias.fill_(2.0)
        images[70] = -100 * module.conv.weight[1].sum((1, 2))[:, None, None]
    data = Data(images, None, "images")
    network = capture(module, images[:2])
    block = walkable_blocks(network, data)[0]
    with ActivationStore(2**30) as store:
        streams = Streams(network, data, store, with_float=True)
        streams.advance(block.entry)
        _, unit = unit_data(streams, block, block.layers, fisher=True, seed=0)
    assert not bool(unit.target.values[70, 1].any())
    assert unit.importance is not None
    weights = unit.importance.values
    assert torch.equal(weights[70], torch.ones_like(weights[70]))
    others = weights[torch.arange(80) != 70]
    assert bool(others.isfinite().all())
    assert float(others.mean()) == pytest.approx(1.0, rel=1e-5)
