"""Samples are added until plans stop changing, and every sample is measured once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from apportion.network import Data, Network
from apportion.quantizer import parse_options
from apportion.sensitivity import (
    MOST_REGRET,
    FisherSettings,
    Labels,
    Objective,
    measure_profile,
    measure_until_stable,
    solve_plan,
    stability,
)

OPTIONS = parse_options("w2..5")
ALL = FisherSettings(labels=Labels.ALL, share=1.0)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of samples that were measured, one after the other."""
    counts: list[int] = []
    original = stability.score_fisher

    def counted(network: Network, data: Data, *args: Any, **kwargs: Any) -> Any:
        counts.append(len(data))
        return original(network, data, *args, **kwargs)

    monkeypatch.setattr(stability, "score_fisher", counted)
    return counts


@pytest.fixture
def alike(image_data: Data) -> Data:
    """Twelve images again and again."""
    return Data(image_data.inputs.repeat(25, 1, 1, 1), None, "alike")


@pytest.fixture
def turning(image_data: Data) -> Data:
    """Noise whose later samples are unlike the first 64 and unlike each other."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, *image_data.inputs.shape[1:], generator=generator)
    inputs[64:128, 0] *= 6
    inputs[128:, 1] *= 12
    return Data(inputs, None, "turning")


def test_samples_that_say_nothing_new_end_the_search(
    image_network: Network, alike: Data, measured: list[int]
) -> None:
    told: list[int] = []
    profile, _ = measure_until_stable(
        image_network, alike, OPTIONS, settings=ALL, on_round=lambda found: told.append(found.samples)
    )
    assert measured == [64, 64]
    assert told == [128]
    assert profile.samples == 128
    found = profile.stability
    assert found is not None
    assert found.stable
    assert len(found.budgets) == 3
    assert found.rounds[-1].regret <= MOST_REGRET
    assert found.rounds[-1].unchanged > 0.9


def test_all_samples_are_used_where_plans_keep_changing(
    image_network: Network, turning: Data, measured: list[int]
) -> None:
    profile, _ = measure_until_stable(image_network, turning, OPTIONS, settings=ALL, budgets=["5b"])
    assert measured == [64, 64, 72]
    found = profile.stability
    assert found is not None
    assert profile.samples == 200
    assert found.budgets == ("5b",)
    assert [each.samples for each in found.rounds] == [128, 200]
    assert all(each.regret > MOST_REGRET for each in found.rounds)
    assert not found.stable


def test_the_scores_are_those_of_all_samples_at_once(image_network: Network, turning: Data) -> None:
    profile, arrays = measure_until_stable(image_network, turning, OPTIONS, settings=ALL, budgets=["5b"])
    whole, expected = measure_profile(image_network, turning, OPTIONS, settings=ALL)
    assert expected is not None
    torch.testing.assert_close(arrays.channel_loss, expected.channel_loss, rtol=1e-4, atol=1e-10)
    assert profile.fingerprint == whole.fingerprint
    both = ((profile, arrays), (whole, expected))
    plans = [solve_plan(*each, "5b", "channel", objective=Objective.ADDITIVE) for each in both]
    assert plans[0].predicted_loss == pytest.approx(plans[1].predicted_loss, rel=1e-4)


def test_a_round_compares_the_plans_of_before_by_the_new_scores(
    image_network: Network, turning: Data
) -> None:
    profile, _ = measure_until_stable(
        image_network, turning.part(slice(128)), OPTIONS, settings=ALL, budgets=["5b"], unit="layer"
    )
    assert profile.stability is not None
    before, now = (
        measure_profile(image_network, turning.part(slice(count)), OPTIONS, settings=ALL)
        for count in (64, 128)
    )
    old, new = solve_plan(*before, "5b", "layer"), solve_plan(*now, "5b", "layer")
    scores = {(layer.name, each.option): each.loss for layer in now[0].layers for each in layer.scores}
    old_loss = sum(scores[layer.name, str(layer.option)] for layer in old.layers)
    (found,) = profile.stability.rounds
    assert found.regret == pytest.approx(old_loss / new.predicted_loss - 1, rel=1e-3)


def test_it_goes_on_from_scores_of_the_first_samples(
    image_network: Network, turning: Data, measured: list[int]
) -> None:
    start = measure_profile(image_network, turning.part(slice(64)), OPTIONS, settings=ALL)
    assert start[1] is not None
    profile, arrays = measure_until_stable(
        image_network, turning, OPTIONS, settings=ALL, budgets=["5b"], start=(start[0], start[1])
    )
    assert measured == [64, 72]
    assert profile.samples == 200
    _, expected = measure_profile(image_network, turning, OPTIONS, settings=ALL)
    assert expected is not None
    torch.testing.assert_close(arrays.channel_loss, expected.channel_loss, rtol=1e-4, atol=1e-10)


def test_few_samples_are_halved(image_network: Network, image_data: Data, measured: list[int]) -> None:
    measure_until_stable(image_network, image_data.part(slice(11)), OPTIONS, settings=ALL, budgets=["5b"])
    assert measured[0] == 5
    assert sum(measured) in (10, 11)
