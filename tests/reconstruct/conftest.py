"""Plans of any options for any network, a network of every kind of layer, and laws that all methods keep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle, islice

import pytest
import torch
from torch import Tensor, nn

from apportion.allocator import LayerCut, LayerPlan, Plan
from apportion.network import Data, Network, capture
from apportion.quantizer import steps_from_half, steps_to_half
from apportion.reconstruct import Finalized, finalize_nearest, layer_shapes

PlanOf = Callable[..., Plan]


@pytest.fixture(scope="session")
def plan_of(plan: Plan) -> PlanOf:
    """A plan with these options for the strips of every layer in turn; its sizes are not counted."""

    def planned(network: Network, options: Sequence[str], cut: str | None = None) -> Plan:
        layers = []
        for name, shape in layer_shapes(network).items():
            own = cut if len(shape) == 2 else None
            strips = LayerCut.of(shape, own).strips
            chosen = list(islice(cycle(options), strips))
            layers.append(
                LayerPlan.from_strips(
                    name, shape, chosen, cut=own, size_bits=0, predicted_loss=0.0, mean_bits=0.0
                )
            )
        return plan.model_copy(update={"layers": tuple(layers), "unit": cut or "channel"})

    return planned


@pytest.fixture(scope="session")
def broken() -> Callable[[Network, Finalized], Finalized]:
    """Weights with a bias that is NaN, so that no output is finite."""

    def with_nan(network: Network, finalized: Finalized) -> Finalized:
        name = next(layer.bias for layer in network.layers if layer.bias is not None)
        bias = torch.full_like(network.tensors[name], torch.nan)
        return replace(finalized, biases={**finalized.biases, name: bias})

    return with_nan


class Kinds(nn.Module):
    """Convolutions with and without bias, depthwise and grouped, and linear layers on tokens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding="same", groups=8)
        self.grouped = nn.Conv2d(8, 6, 3, stride=2, groups=2, bias=False)
        self.tokens = nn.Linear(6, 12)
        self.weight = nn.Parameter(torch.randn(12, 5))
        self.bias = nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = x + self.depthwise(x).relu()
        x = self.grouped(x).relu().flatten(2).transpose(1, 2)
        return torch.addmm(self.bias, self.tokens(x).relu().mean(1), self.weight)


@pytest.fixture(scope="session")
def kinds_data() -> Data:
    """More samples than one batch."""
    inputs = torch.rand(72, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    return Data(inputs - 0.3, None, "uniform")


@pytest.fixture(scope="session")
def kinds(kinds_data: Data) -> Network:
    return capture(Kinds(), kinds_data.inputs[:2])


@pytest.fixture(scope="session")
def check_storable() -> Callable[[Network, Plan, Finalized], None]:
    """That a result has the plan's options, codes within their widths, and steps that 16 bits hold."""

    def check(network: Network, plan: Plan, finalized: Finalized) -> None:
        nearest = finalize_nearest(network, plan)
        for after, before in zip(finalized.layers, nearest.layers, strict=True):
            assert after.name == before.name
            for new, old in zip(after.parts, before.parts, strict=True):
                half = 2 ** (new.rows.option.bits - 1)
                assert new.rows.option == old.rows.option
                assert torch.equal(new.index, old.index)
                assert new.rows.codes.shape == old.rows.codes.shape
                assert new.rows.steps.shape == old.rows.steps.shape
                assert int(new.rows.codes.min()) >= -half
                assert int(new.rows.codes.max()) < half
                assert bool((new.rows.steps != 0).all())
                for steps in new.rows.steps:
                    assert torch.equal(steps_from_half(*steps_to_half(steps)), steps)
        for name, bias in finalized.biases.items():
            assert name in {layer.bias for layer in network.layers}
            assert bias.shape == network.tensors[name].shape
            assert bias.dtype == network.tensors[name].dtype

    return check


@pytest.fixture(scope="session")
def token_data() -> Data:
    """Samples of six tokens; correlated, else there is little to gain over nearest."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(128, 6, 3, generator=generator) @ torch.randn(3, 12, generator=generator)
    return Data(inputs, None, "normal")
