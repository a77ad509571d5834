"""Learned rounding settles in units of every size, bears infinite slopes, and leaves GPTQ where it loses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from apportion.allocator import Plan
from apportion.network import Data, Network, capture
from apportion.reconstruct import Gptq, Granularity, LearnedRounding, Learning, UnitReport

PlanOf = Callable[..., Plan]
LEARNING = Learning(iterations=300, batch=16)
# Of 144 weights in the least unit of the digits to 20,736 in the largest.
MOST_UNSETTLED = 0.1


def test_weights_settle_in_units_of_every_size(network: Network, data: Data, plan_of: PlanOf) -> None:
    reports: list[UnitReport] = []
    method = LearnedRounding(Granularity.LAYER, learning=LEARNING)
    method.finalize(network, plan_of(network, ["w2"]), data, on_unit=reports.append)
    assert max(report.unsettled for report in reports) < MOST_UNSETTLED


def test_what_learning_does_not_better_is_as_gptq_makes_it_from_all_samples(
    network: Network, data: Data, plan_of: PlanOf
) -> None:
    plan, reports = plan_of(network, ["w3"]), list[UnitReport]()
    # No pull and steps of this size from the middle of nowhere: worse than any start.
    spoiled = LearnedRounding(learning=replace(LEARNING, iterations=3, rate=10.0, pull=0.0))
    found = spoiled.finalize(network, plan, data, on_unit=reports.append)
    assert not any(report.kept for report in reports)
    for layer, alone in zip(found.layers, Gptq().finalize(network, plan, data).layers, strict=True):
        assert torch.equal(layer.dequantize(), alone.dequantize())


class Rooted(nn.Module):
    """A root of exactly 0, where a ReLU has cut, has an infinite slope."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(12, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.first(x).relu().sqrt())
        return out


@pytest.mark.parametrize("granularity", [Granularity.LAYER, Granularity.NETWORK])
def test_slopes_that_are_not_finite_move_nothing(plan_of: PlanOf, granularity: Granularity) -> None:
    data = Data(torch.randn(64, 12, generator=torch.Generator().manual_seed(1)), None, "normal")
    network, reports = capture(Rooted(), data.inputs[:2]), list[UnitReport]()
    method = LearnedRounding(granularity, learning=LEARNING)
    method.finalize(network, plan_of(network, ["w2"]), data, on_unit=reports.append)
    assert all(math.isfinite(report.learned_error) for report in reports)
    assert all(report.iterations for report in reports)
