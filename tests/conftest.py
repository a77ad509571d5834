"""One thread and one seed for all tests; the digits network, a profile of it, and plans made by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

from apportion.allocator import LayerPlan, Plan
from apportion.demo import digits_data, digits_network
from apportion.network import Data, Network, capture
from apportion.quantizer import parse_options
from apportion.reconstruct import accept_edits
from apportion.sensitivity import Profile, ProfileArrays, measure_profile, solve_plan

Assign = Callable[[Mapping[str, Sequence[str]]], Plan]
Twins = Callable[..., tuple[Network, Network]]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Give every test, and the fixtures that it is the first to need, the same random numbers."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data() -> Data:
    """The first 64 calibration digits, with labels."""
    digits = digits_data()[0]
    return Data(digits.inputs[:64], digits.labels[:64], digits.name)


@pytest.fixture(scope="session")
def network(data: Data) -> Network:
    return capture(digits_network(), data.inputs)


@pytest.fixture(scope="session")
def profile(network: Network, data: Data) -> tuple[Profile, ProfileArrays]:
    """Scores of options of every kind; groups of 16 fit all layers but two."""
    few = Data(data.inputs[:16], None, data.name)
    measured, arrays = measure_profile(network, few, parse_options("w2..4,w8,w1x2,w2x2,w4t,w3g16"))
    assert arrays is not None
    return measured, arrays


@pytest.fixture(scope="session")
def plan(profile: tuple[Profile, ProfileArrays]) -> Plan:
    """The solved plan per layer at 4 bits."""
    return solve_plan(*profile, "4b", "layer")


@pytest.fixture(scope="session")
def assign(plan: Plan) -> Assign:
    """The plan with these options of channels in place of the solved ones, sizes counted again."""

    def assigned(options: Mapping[str, Sequence[str]]) -> Plan:
        layers = tuple(
            LayerPlan.from_strips(
                layer.name,
                layer.shape,
                options.get(layer.name, layer.strip_options()),
                size_bits=layer.size_bits,
                predicted_loss=layer.predicted_loss,
                mean_bits=layer.mean_bits,
            )
            for layer in plan.layers
        )
        update = {"layers": layers, "budgets": ("40b",), "unit": "channel"}
        return accept_edits(plan.model_copy(update=update))

    return assigned


class Pooled(nn.Module):
    """A mean over many pixels, large values behind it and a classifier that may be sure: slopes are small."""

    def __init__(self, sure: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.middle = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)
        with torch.no_grad():
            self.middle.weight.mul_(256)
            self.head.weight.div_(256)
            self.head.bias[0] += sure

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.to(self.stem.weight.dtype)).relu()
        logits: Tensor = self.head(self.middle(x).relu().mean((2, 3)))
        return logits


@pytest.fixture(scope="session")
def twins() -> Twins:
    """A small network of small slopes in a type, and in float32 with the same numbers."""

    def made(kind: torch.dtype, data: Data, *, sure: float) -> tuple[Network, Network]:
        half, single = Pooled(sure).to(kind).eval(), Pooled(sure).to(kind).float().eval()
        return capture(half, data.inputs[:2]), capture(single, data.inputs[:2])

    return made
