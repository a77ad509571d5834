"""Steps that are learned with the rounding: one factor for each channel, whatever it has of steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from apportion.allocator import Plan
from apportion.network import Data, Network, capture
from apportion.reconstruct import (
    Finalized,
    LearnedRounding,
    Learning,
    UnitReport,
    finalize_nearest,
    measure_finalized,
)

PlanOf = Callable[..., Plan]
METHOD = LearnedRounding(
    start=None, held_out=0.25, learning=Learning(iterations=120, batch=16, rate=3e-2, soften=1.0)
)
FIXED = replace(METHOD, learning=replace(METHOD.learning, step_rate=0.0))
# Two steps whose ratios differ by so little were stretched alike and rounded to 16 bits.
ROUNDED = 2e-3


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.first(x).relu()
        x = x + self.second(x).relu()
        out: Tensor = self.head(x.mean(1))
        return out


@pytest.fixture(scope="module")
def tokens(token_data: Data) -> tuple[Network, Data]:
    return capture(Tokens(), token_data.inputs[:2]), token_data


def ratios_of(finalized: Finalized, nearest: Finalized) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """The rows and the stretching of the steps of every part, by layer."""
    return {
        after.name: [
            (new.index, new.rows.steps / old.rows.steps)
            for new, old in zip(after.parts, before.parts, strict=True)
        ]
        for after, before in zip(finalized.layers, nearest.layers, strict=True)
    }


@pytest.mark.parametrize("option", ["w2", "w2x2", "w3t", "w2x2t", "w2g4", "w2x2g4"])
def test_a_channel_has_one_factor_whatever_it_has_of_steps_and_a_tensor_one_for_all(
    tokens: tuple[Network, Data], plan_of: PlanOf, check_storable: Callable[..., None], option: str
) -> None:
    network, data = tokens
    plan = plan_of(network, [option])
    nearest, reports = finalize_nearest(network, plan), list[UnitReport]()
    finalized = METHOD.finalize(network, plan, data, on_unit=reports.append)
    check_storable(network, plan, finalized)
    kept = {name for report in reports if report.kept for name in report.layers}
    assert kept
    for name, ((_, ratios),) in ratios_of(finalized, nearest).items():
        torch.testing.assert_close(ratios, ratios[:1, :, :1].expand_as(ratios), rtol=ROUNDED, atol=0)
        assert (name in kept) == bool((ratios != 1).any())
    same = ratios_of(FIXED.finalize(network, plan, data), nearest)
    assert all(bool((ratios == 1).all()) for ((_, ratios),) in same.values())


def test_runs_of_inputs_share_the_factor_of_their_channel(
    tokens: tuple[Network, Data], plan_of: PlanOf
) -> None:
    network, data = tokens
    plan = plan_of(network, ["w2", "w3", "w2"], "inputs:4")
    found = ratios_of(METHOD.finalize(network, plan, data), finalize_nearest(network, plan))
    moved = 0
    for layer in network.layers:
        ratios = torch.empty(3, layer.channels)
        for index, own in found[layer.name]:
            ratios.view(-1)[index] = own[0, :, 0]
        torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios), rtol=ROUNDED, atol=0)
        moved += int((ratios[0] - 1).abs().gt(ROUNDED).sum())
    assert moved > 10


def test_steps_that_learn_with_the_rounding_lose_less_than_fixed_ones(
    network: Network, plan_of: PlanOf, data: Data
) -> None:
    plan = plan_of(network, ["w2"])
    learned, fixed = (
        measure_finalized(network, method.finalize(network, plan, data), data).loss
        for method in (METHOD, FIXED)
    )
    assert learned < 0.9 * fixed
