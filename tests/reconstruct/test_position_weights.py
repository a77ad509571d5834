"""What a position counts: the slopes of the network's output there, and whose samples they are."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from apportion.allocator import Plan
from apportion.network import ActivationStore, Data, LayerCall, Network, StreamedTensors, capture
from apportion.reconstruct import AdaQuant, Gptq, InputGram, Method
from apportion.reconstruct.gptq import _Inputs
from apportion.reconstruct.layer_inputs import drawn_positions, input_gram
from apportion.reconstruct.position_weights import FLOOR, position_weights
from apportion.reconstruct.streams import Streams

MEMORY = 2**30


class Mixed(nn.Module):
    """A convolution, whose pixels are the tokens of two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(1, 6, 3, stride=2)
        self.inner = nn.Linear(6, 7)
        self.head = nn.Linear(7, 3)

    def after_stem(self, z: Tensor) -> Tensor:
        return self.inner(z.relu().flatten(2).transpose(1, 2))

    def after_inner(self, z: Tensor) -> Tensor:
        # Later tokens say more.
        weights = torch.arange(z.shape[1], dtype=z.dtype)
        logits: Tensor = self.head((z.tanh() * weights[:, None]).mean(1))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.after_inner(self.after_stem(self.stem(x)))


class First(nn.Module):
    """Tokens of which the output reads the first alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one = nn.Linear(16, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.one(x).relu()[:, 0])
        return logits


def noise(*shape: int, seed: int = 0) -> Data:
    return Data(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), None, "noise")


def expected(logits: Tensor, value: Tensor, channels: int) -> list[Tensor]:
    """The weights of one sample for every label that may be drawn."""
    found = []
    for label in range(logits.shape[-1]):
        (slope,) = torch.autograd.grad(logits.log_softmax(-1)[0, label], value, retain_graph=True)
        energy = slope.square().mean(channels)
        found.append((FLOOR + (1 - FLOOR) * energy / energy.mean()).flatten(1))
    return found


def test_weights_are_squared_slopes_over_channels_relative_to_the_sample() -> None:
    data, module = noise(40, 1, 9, 9), Mixed().eval()
    network = capture(module, data.inputs[:2])
    found = {name: weights.float() for name, weights in position_weights(network, data).items()}
    stem, inner, head = (found[layer.products[0]] for layer in network.layers)
    assert stem.shape == (40, 16)
    assert inner.shape == (40, 16)
    torch.testing.assert_close(head, torch.ones(40, 1))
    for sample in range(40):
        value = module.stem(data.inputs[sample : sample + 1])
        tokens = module.after_stem(value)
        logits = module.after_inner(tokens)
        # One label is drawn, the same for both layers.
        agrees = [
            all(
                torch.allclose(mine[sample : sample + 1], own, rtol=1e-3, atol=1e-3)
                for mine, own in ((stem, one), (inner, other))
            )
            for one, other in zip(
                expected(logits, value, 1), expected(logits, tokens, 2), strict=True
            )
        ]  # fmt: skip
        assert any(agrees)


def test_a_token_that_nothing_reads_counts_the_floor() -> None:
    data = noise(8, 5, 16)
    network = capture(First().eval(), data.inputs[:2])
    weights = position_weights(network, data)[network.layers[0].products[0]]
    assert weights.shape == (8, 5)
    torch.testing.assert_close(weights[:, 1:].float(), torch.full((8, 4), FLOOR), rtol=1e-3, atol=0)
    torch.testing.assert_close(weights.float().mean(1), torch.ones(8), rtol=1e-3, atol=0)


def test_batches_say_the_same_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = noise(20, 1, 9, 9)
    networks = [capture(Mixed().eval(), data.inputs[:2]) for _ in range(2)]
    whole = position_weights(networks[0], data)
    monkeypatch.setattr("apportion.reconstruct.position_weights.BATCH_NUMBERS", 1)
    single = position_weights(networks[1], data)
    assert whole.keys() == single.keys()
    for name, weights in whole.items():
        torch.testing.assert_close(weights, single[name], rtol=1e-3, atol=1e-3)


def test_samples_of_which_the_network_is_sure_count_by_their_positions_too() -> None:
    data, module = noise(6, 1, 9, 9), Mixed().eval()
    with torch.no_grad():
        module.head.weight.mul_(20)
    network = capture(module.half(), data.inputs[:2].half())
    data = replace(data, inputs=data.inputs.half())
    weights = position_weights(network, data)[network.layers[1].products[0]]
    assert bool(weights.isfinite().all())
    assert bool((weights.float().std(1) > 0.05).all())


def test_tokens_before_samples_are_told_apart() -> None:
    class Turned(First):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.one(x.transpose(0, 1)).relu()[0])
            return logits

    data = noise(8, 5, 16)
    one, other = (capture(kind().eval(), data.inputs[:2]) for kind in (First, Turned))
    first, second = (
        position_weights(network, data)[network.layers[0].products[0]] for network in (one, other)
    )
    torch.testing.assert_close(first, second)


def test_slopes_are_taken_where_none_are_asked_for() -> None:
    data = noise(6, 1, 9, 9)
    network = capture(Mixed().eval(), data.inputs[:2])
    expected = position_weights(network, data)
    for mode in torch.no_grad, torch.inference_mode:
        again = capture(Mixed().eval(), data.inputs[:2])
        with mode():
            drawn = replace(data, inputs=data.inputs.clone())
            found = position_weights(again, drawn)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_they_are_kept_for_the_network_and_the_data_as_they_are() -> None:
    data = noise(6, 1, 9, 9)
    network = capture(Mixed().eval(), data.inputs[:2])
    first = position_weights(network, data)
    assert position_weights(network, replace(data, name="the same")) is first
    data.inputs.mul_(3)
    moved = position_weights(network, data)
    assert any(not torch.equal(moved[name], first[name]) for name in first)
    kept = weakref.ref(network)
    del network
    gc.collect()
    assert kept() is None


def test_samples_whose_slopes_overflow_count_alike() -> None:
    class Steep(First):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head((self.one(x) * 1e30).sin()[:, 0] * 1e30)
            return logits

    data = noise(8, 5, 16)
    network = capture(Steep().eval(), data.inputs[:2])
    (weights, _) = position_weights(network, data).values()
    assert torch.equal(weights, torch.ones_like(weights))
    broken = replace(data, inputs=data.inputs.clone())
    broken.inputs[3] = torch.nan
    first = position_weights(capture(First().eval(), data.inputs[:2]), broken)
    assert all(bool(weights.isfinite().all()) for weights in first.values())


def test_frames_that_are_folded_into_the_samples_have_weights_of_their_own() -> None:
    class Film(nn.Module):
        def __init__(self, fold: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.fold = fold
            self.kernel = nn.Conv3d(1, 4, (1, 3, 3)) if not fold else nn.Conv2d(1, 4, 3)
            self.head = nn.Linear(4, 3)
            if fold:
                torch.manual_seed(0)
                like = nn.Conv3d(1, 4, (1, 3, 3))
                self.kernel.weight.data = like.weight.data[:, :, 0]
                self.kernel.bias.data = like.bias.data  # type: ignore[union-attr]
                self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            frames = x.shape[1]
            if self.fold:
                y = self.kernel(x.reshape(-1, 1, 6, 6)).relu().unflatten(0, (-1, frames)).transpose(1, 2)
            else:
                y = self.kernel(x[:, None]).relu()
            weights = torch.arange(1.0, frames + 1)[:, None, None]
            logits: Tensor = self.head((y * weights).flatten(2).mean(2))
            return logits

    data = noise(6, 5, 6, 6)
    grams = []
    for fold in False, True:
        network = capture(Film(fold).eval(), data.inputs[:2])
        with ActivationStore(MEMORY) as store:
            streams = Streams(network, data, store, with_float=False)
            layer = network.layers[0]
            grams.append(
                [
                    input_gram(
                        streams, layer, range(6), cross=False, positions=32, levelled=False, weighted=weighted
                    ).gram
                    for weighted in (True, False)
                ]
            )
    torch.testing.assert_close(grams[0][0], grams[1][0], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(grams[0][1], grams[1][1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(grams[1][0], grams[1][1], rtol=0.05)


def test_convolutions_over_another_axis_than_the_samples_are_no_error() -> None:
    class Across(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.mix, self.head = nn.Conv1d(6, 7, 1), nn.Linear(7, 3)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.mix(x.permute(1, 2, 0)).relu().mean(0).T)
            return logits

    data = noise(8, 5, 6)
    network = capture(Across().eval(), data.inputs[:2])
    weights = position_weights(network, data)[network.layers[0].products[0]]
    assert weights.shape == (8, 5)


def test_networks_that_are_streamed_have_none() -> None:
    data = noise(8, 5, 16)
    network = capture(First().eval(), data.inputs[:2])
    network.tensors = StreamedTensors(
        network.outlines, dict(network.tensors).__getitem__, torch.device("cpu"), MEMORY
    )
    assert position_weights(network, data) == {}


def test_sums_take_the_weights_of_the_positions_of_each_sample(network: Network) -> None:
    layer = next(layer for layer in network.layers if layer.kind == "linear")
    x = torch.randn(9, 4, layer.fan_in, generator=torch.Generator().manual_seed(0))
    weights = torch.rand(9, 4, generator=torch.Generator().manual_seed(1))
    gram = InputGram.empty(1, layer.fan_in, x.device, cross=True)
    gram.add(LayerCall(layer, layer.products[0]), x, x + 1, weights=weights)
    weighted, flat = (weights[:, :, None] * x).flatten(0, 1), x.flatten(0, 1)
    torch.testing.assert_close(gram.gram[0], 2 * (flat.T @ weighted).double(), rtol=1e-4, atol=1e-4)
    assert gram.cross is not None
    torch.testing.assert_close(gram.cross[0], 2 * ((flat + 1).T @ weighted).double(), rtol=1e-4, atol=1e-4)


def test_positions_are_drawn_by_weight_and_stand_for_all() -> None:
    weights = torch.cat([torch.tensor([500.0]), torch.rand(199, generator=torch.Generator().manual_seed(0))])
    generator, total, rounds = torch.Generator().manual_seed(1), torch.zeros(200), 3000
    for _ in range(rounds):
        index, chances = drawn_positions(weights, 30, generator)
        assert 0 in index
        assert len(index) == len(index.unique())
        assert abs(len(index) - 30) <= 1
        total[index] += weights[index] / chances
    assert float(total.sum() / rounds) == pytest.approx(float(weights.sum()), rel=0.01)
    torch.testing.assert_close(total[50:] / rounds, weights[50:], rtol=0.5, atol=0.05)


def test_sums_over_drawn_positions_are_near_those_over_all() -> None:
    data, many = noise(64, 600, 16), 2**10
    network = capture(First().eval(), data.inputs[:2])
    layer = network.layers[0]
    with ActivationStore(MEMORY) as store:
        streams = Streams(network, data, store, with_float=False)
        few, all_ = (
            input_gram(streams, layer, range(64), cross=False, positions=count, levelled=False).gram
            for count in (1, many)
        )
    assert float((few - all_).norm() / all_.norm()) < 0.1


@pytest.mark.parametrize(
    ("weighted", "alike"),
    [
        (Gptq(), Gptq(weighted=False)),
        (AdaQuant(), AdaQuant(start=Gptq(weighted=False), weighted=False)),
    ],
    ids=["gptq", "adaquant"],
)
def test_the_token_that_is_read_loses_less(
    plan_of: Callable[..., Plan], weighted: Method, alike: Method
) -> None:
    """The first tokens vary along other directions than all others."""
    generator = torch.Generator().manual_seed(2)
    mixing = torch.randn(2, 16, 16, generator=generator) * torch.logspace(-1.5, 0, 16)[:, None]

    def tokens(seed: int) -> Data:
        drawn = noise(256, 24, 16, seed=seed)
        return replace(
            drawn, inputs=torch.cat([drawn.inputs[:, :1] @ mixing[0], drawn.inputs[:, 1:] @ mixing[1]], 1)
        )

    data, fresh = tokens(0), tokens(1).inputs
    network = capture(First().eval(), data.inputs[:2])
    plan = plan_of(network, ["w3"])
    errors = []
    for method in weighted, alike:
        finalized = method.finalize(network, plan, data)
        output = network.run(fresh, tensors=finalized.tensors(network))
        errors.append(float((output - network.run(fresh)).square().mean()))
    assert errors[0] < errors[1]


def test_layers_that_read_one_value_have_weights_of_their_own() -> None:
    """The first token asks, and all others answer."""

    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.query, self.key = nn.Linear(16, 16), nn.Linear(16, 16)
            self.head = nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            asked, keys = self.query(x)[:, :1], self.key(x)[:, 1:]
            logits: Tensor = self.head(((asked @ keys.mT).softmax(-1) @ keys)[:, 0])
            return logits

    data = noise(16, 9, 16)
    network = capture(Asking().eval(), data.inputs[:2])
    with ActivationStore(MEMORY) as store:
        streams = Streams(network, data, store, with_float=True)
        inputs = _Inputs(streams, Gptq(), range(16))
        query, key = (inputs.of(layer).gram for layer in network.layers[:2])
        expected = [
            input_gram(streams, layer, range(16), cross=True, positions=32).gram
            for layer in network.layers[:2]
        ]
    assert not torch.allclose(expected[0], expected[1], rtol=0.1)
    assert torch.equal(query, expected[0])
    assert torch.equal(key, expected[1])


def test_one_of_very_many_positions_may_have_all_the_slope() -> None:
    data = noise(2, 100_000, 16)
    network = capture(First().eval(), data.inputs[:2])
    weights = position_weights(network, data)[network.layers[0].products[0]]
    assert bool(weights.isfinite().all())
    assert bool((weights[:, 0] > 60_000).all())
