"""Every layer is timed under every option that fits it, alone, and equal layers once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from apportion.errors import InputError
from apportion.export import measure_latency
from apportion.network import Data, Network, capture
from apportion.quantizer import parse_options


def test_layers_and_options_that_fit_have_times(network: Network, data: Data) -> None:
    told: list[tuple[int, int]] = []
    measured = measure_latency(
        network,
        data.inputs[:1],
        parse_options("w4,w1x2,w2x2,w3g16"),
        repeats=3,
        on_layer=lambda done, total: told.append((done, total)),
    )
    expected = {
        (layer.name, option)
        for layer in network.layers
        for option in ("w4", "w1x2", "w2x2", *(("w3g16",) if layer.fan_in >= 16 else ()))
    }
    assert {(each.layer, each.option) for each in measured} == expected
    assert all(each.median_ms > 0 and each.spread_ms >= 0 for each in measured)
    assert told[-1] == (len(network.layers), len(network.layers))


class Twice(nn.Module):
    """Two equal layers, one of them used twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(64, 64)
        self.second = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(self.first(x).relu()).relu())


@pytest.mark.parametrize("kernels", ["float", "integer"])
def test_equal_layers_are_timed_once_and_uses_add_up(kernels: str) -> None:
    inputs = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    network = capture(Twice(), inputs)
    measured = measure_latency(network, inputs, parse_options("w4,w8"), kernels=kernels, repeats=5)  # type: ignore[arg-type]
    times = {(each.layer, each.option): each.median_ms for each in measured}
    for option in ("w4", "w8"):
        assert times["first", option] == pytest.approx(2 * times["second", option])


class Computed(nn.Module):
    """A layer whose bias depends on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, x.mean(0))


def test_a_layer_that_reads_two_computed_values_is_refused_by_name() -> None:
    network = capture(Computed(), torch.ones(2, 4))
    with pytest.raises(InputError, match="layer 'weight' reads 2 computed values"):
        measure_latency(network, torch.ones(1, 4), parse_options("w4"))
