"""Samples are found where they are: first, behind the tokens, or folded with them in either order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from apportion.network import (
    SAMPLES_FIRST,
    Data,
    Network,
    SampleAxis,
    capture,
    different_samples,
    is_by_sample,
    sample_axes,
)

TOKENS, WIDTH = 5, 8


class Attention(nn.Module):
    """PyTorch's own layer: its first projection reads tokens first, its second one all in one axis."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.place = nn.Parameter(torch.randn(TOKENS, WIDTH))
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(self.layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x + self.place).mean(1))


@pytest.fixture(scope="module")
def data() -> Data:
    return Data(torch.randn(12, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1)), None, "noise")


@pytest.fixture(scope="module")
def network(data: Data) -> Network:
    return capture(Attention().eval(), data.inputs[:2])


def test_the_axis_of_every_layers_inputs_is_that_of_the_samples(network: Network, data: Data) -> None:
    axes = sample_axes(network, data)
    found = [axes.get(layer.nodes[0], SAMPLES_FIRST) for layer in network.layers]
    assert found == [SampleAxis(1), SampleAxis(0, leading=False), *[SAMPLES_FIRST] * 3]


def test_values_of_each_sample_are_those_it_has_alone(network: Network, data: Data) -> None:
    axes = sample_axes(network, data)

    def entering(inputs: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        network.run(inputs, on_layer=lambda call, x, y: (found.__setitem__(call.node, x), y)[1])
        return found

    together = entering(data.inputs[:3])
    for sample in range(3):
        for name, alone in entering(data.inputs[sample : sample + 1]).items():
            axis = axes.get(name, SAMPLES_FIRST)
            whole, own = axis.first(together[name], 3), axis.first(alone, 1)
            assert whole is not None
            assert own is not None
            torch.testing.assert_close(whole[sample], own[0], rtol=1e-4, atol=1e-5)


def test_an_axis_that_is_no_multiple_of_the_samples_says_nothing() -> None:
    assert SAMPLES_FIRST.first(torch.zeros(7, 2), 3) is None
    assert SampleAxis(1).first(torch.zeros(2, 7), 3) is None


def test_a_value_with_all_samples_of_a_token_together_is_not_sample_after_sample() -> None:
    x = torch.randn(3, 4, 2)
    assert is_by_sample(*(x[:n].flatten(0, 1) for n in (1, 2, 3)))
    assert is_by_sample(x[:1], x[:2], x)
    assert not is_by_sample(*(x[:n].transpose(0, 1).flatten(0, 1) for n in (1, 2, 3)))
    assert not is_by_sample(*(x[:n].transpose(0, 1) for n in (1, 2, 3)))


def test_two_samples_differ_where_the_data_has_any_that_do() -> None:
    same = torch.ones(4, 3)
    other = same.clone()
    other[2, 1] = 0
    assert torch.equal(different_samples(other), other[[0, 2]])
    ramp = torch.arange(3.0).expand(4, 3)
    assert torch.equal(different_samples(ramp), torch.tensor([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]]))
