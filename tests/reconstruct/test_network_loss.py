"""The loss that methods search by, and when a difference of losses counts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from apportion.allocator import Plan
from apportion.network import Data, Network
from apportion.reconstruct import finalize_nearest, measure_finalized
from apportion.reconstruct.held_out import learned_and_judged
from apportion.reconstruct.network_loss import NetworkLoss, surely_less


def test_it_is_the_measured_loss_of_the_samples_named(
    network: Network, data: Data, plan_of: Callable[..., Plan]
) -> None:
    finalized = finalize_nearest(network, plan_of(network, ["w2"]))
    some = Data(data.inputs[10:30], None, data.name)
    loss = NetworkLoss(network, data, range(10, 30))
    assert loss.of_finalized(finalized) == measure_finalized(network, finalized, some).loss
    assert loss.of({}) == pytest.approx(0, abs=1e-12)


def test_an_output_that_is_not_finite_has_infinite_loss(network: Network, data: Data) -> None:
    spoiled = {layer.weight: network.weight(layer) * torch.nan for layer in network.layers}
    assert NetworkLoss(network, data, range(4)).of(spoiled) == torch.inf


def test_only_differences_beyond_chance_count() -> None:
    noise = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise -= noise.mean()
    base = torch.full_like(noise, 3.0)
    assert surely_less(base - 0.2 + noise, base)
    assert not surely_less(base - 0.05 + noise, base)
    assert not surely_less(base, base)
    assert not surely_less(base + 0.2 + noise, base)
    assert surely_less(base, base * torch.inf)
    assert not surely_less(base * torch.inf, base)


def test_few_samples_must_agree_the_more() -> None:
    base = torch.full((8,), 3.0, dtype=torch.float64)
    # The mean is this many standard errors below zero.
    for errors, count, sure in ((2.3, 8, False), (2.6, 8, True), (10, 2, False), (20, 2, True)):
        spread = torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat(count // 2)
        gain = errors * float(spread.std()) / count**0.5
        assert surely_less(base[:count] + spread - gain, base[:count]) is sure
    assert not surely_less(base[:1] - 0.1, base[:1])
    assert surely_less(base[:1], base[:1] * torch.inf)


@pytest.mark.parametrize("samples", [1, 2, 3, 16, 1024])
@pytest.mark.parametrize("share", [1e-6, 0.25, 0.999])
def test_samples_are_learned_from_or_judge_and_there_are_some_of_both(samples: int, share: float) -> None:
    learned, judged = learned_and_judged(samples, share)
    assert len(learned) >= 1
    assert len(judged) >= 1
    if samples > 1:
        assert [*learned, *judged] == list(range(samples))
