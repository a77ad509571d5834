"""Scores and slopes of networks in half precision are those of the same numbers in float32."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from apportion.network import Data, Network
from apportion.quantizer import Quantizer, RangeSearch, RangeSettings, parse_option_set, parse_options
from apportion.sensitivity import (
    ActivationSettings,
    FisherSettings,
    measure_profile,
    pose_task,
    score_activations,
    score_fisher,
    site_options,
    solve_plan,
)
from apportion.sensitivity.around import Around

Twins = Callable[..., tuple[Network, Network]]
HALF = [torch.float16, torch.bfloat16]
# Sums of float32 in another order.
CLOSE = {"rtol": 1e-3, "atol": 0.0}
# The weights of a choice are rounded to half precision, to 8 significant bits in one of its types.
STORED = 0.05


@pytest.fixture
def data() -> Data:
    return Data(torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)), None, "normal")


@pytest.mark.parametrize("memory_bytes", [2**31, 2**16])
@pytest.mark.parametrize("kind", HALF)
def test_weights_are_scored_alike(twins: Twins, kind: torch.dtype, data: Data, memory_bytes: int) -> None:
    settings = FisherSettings(share=1.0, memory_bytes=memory_bytes)
    half, single = (
        score_fisher(network, data, parse_options("w2..8"), Quantizer(), settings)
        for network in twins(kind, data, sure=6.0)
    )
    assert bool((single.channel_loss > 0).all())
    torch.testing.assert_close(half.channel_loss, single.channel_loss, **CLOSE)
    torch.testing.assert_close(half.layer_loss(), single.layer_loss(), **CLOSE)


@pytest.mark.parametrize("kind", HALF)
def test_values_are_scored_alike(twins: Twins, kind: torch.dtype, data: Data) -> None:
    networks = twins(kind, data, sure=6.0)
    settings = ActivationSettings(parse_option_set("w8a2..8").activations, RangeSettings(RangeSearch.MSE))
    # The ranges of one of them for both: those that half precision sees may differ.
    sites = site_options(networks[1], data, settings)
    half, single = (
        score_activations(network, data, sites, FisherSettings(share=1.0)) for network in networks
    )
    assert bool((single.loss > 0).all())
    torch.testing.assert_close(half.loss, single.loss, **CLOSE)


@pytest.mark.parametrize("kind", HALF)
def test_slopes_of_the_loss_are_alike(twins: Twins, kind: torch.dtype, data: Data) -> None:
    slopes = []
    for network in twins(kind, data, sure=6.0):
        profile, arrays = measure_profile(network, data, parse_options("w2..4"))
        task = pose_task(profile, arrays, "3b", "layer")
        around = Around(network, data, data, task, FisherSettings())
        choice = np.full_like(task.choice_of(solve_plan(profile, arrays, "3b", "layer")), 1)
        slopes.append(around.part_slope(choice, np.arange(len(data))))
    largest = np.abs(slopes[1]).max(1, keepdims=True)
    assert (largest > 0).all()
    np.testing.assert_allclose(slopes[0] / largest, slopes[1] / largest, atol=STORED)
