"""Plans of any options for any network, a network of every kind of layer, and laws that all methods keep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle, islice

import pytest
import torch
from torch import Tensor, nn

from apportion.allocator import (
    ActivationChoice,
    ActivationPlan,
    LayerCut,
    LayerPlan,
    Plan,
    assignment_digest,
)
from apportion.network import Data, Network, capture, find_sites, sample_sites
from apportion.quantizer import ActivationGrid, Quantizer, parse_option, steps_from_half, steps_to_half
from apportion.reconstruct import Finalized, StoredLayer, StoredPart, finalize_nearest, layer_shapes

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


def stored(weight: Tensor, options: Sequence[str], inputs: int = 0) -> StoredLayer:
    """Rows rounded to nearest, one option for each row, or for each strip of `inputs` input weights."""
    cut = LayerCut(*weight.shape, inputs)
    matrix, parts = cut.to_rows(weight), []
    for text in dict.fromkeys(options):
        strips = [strip for strip, other in enumerate(options) if other == text]
        index = torch.tensor(cut.strip_rows(strips))
        parts.append(StoredPart(index, Quantizer().quantize(matrix[index], parse_option(text))))
    return StoredLayer("layer", tuple(parts), cut)


def row_errors(layer: StoredLayer, weight: Tensor, gram: Tensor) -> Tensor:
    """``(q - w) H (q - w)'`` of every row, with a Gram matrix for each group of rows."""
    delta = (layer.dequantize() - weight).double().view(len(gram), -1, weight.shape[1])
    return ((delta @ gram) * delta).sum(2).flatten()


def with_low_bits(plan: Plan, network: Network, data: Data, bits: tuple[int, ...] = (4, 8)) -> Plan:
    """The plan with all values of the network in these bits in turn, by their extremes."""
    sites = find_sites(network)
    samples = sample_sites(network, data, sites)
    values = []
    for site, width in zip(sites, cycle(bits), strict=False):
        choices = {}
        for each in bits:
            numbers = samples[site.name].numbers
            grid = ActivationGrid.over(float(numbers.min()), float(numbers.max()), 2**each - 1)
            choices[f"a{each}"] = ActivationChoice(
                bits=each, predicted_loss=0.0, step=grid.step, zero_point=grid.zero_point
            )
        readers = {reader.layer: reader.macs for reader in site.readers}
        values.append(
            ActivationPlan(
                name=site.name, option=f"a{width}", elements=site.elements, readers=readers, choices=choices
            )
        )
    assignment = assignment_digest(plan.layers, values)
    return plan.model_copy(update={"activations": tuple(values), "assignment": assignment})


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
