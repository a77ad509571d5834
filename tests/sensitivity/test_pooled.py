"""Scores of strips that differ by chance alone are drawn together, and others are not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from apportion.network import Data, capture
from apportion.quantizer import parse_options
from apportion.sensitivity import Objective, Profile, ProfileArrays, measure_profile, solve_plan
from apportion.sensitivity.pooled import pooled_scores

CLASSES, HIDDEN, SAMPLES = 200, 16, 24


@pytest.fixture(scope="module")
def scored() -> tuple[Profile, ProfileArrays]:
    """Classes of one kind, each of which a few samples show; and hidden channels that differ a lot."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(12, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, CLASSES)).eval()
    data = Data(torch.randn(SAMPLES, 12), None, "noise")
    profile, arrays = measure_profile(capture(module, data.inputs[:2]), data, parse_options("w2..6"))
    assert arrays is not None
    options = torch.logspace(0, -2, 5, dtype=torch.float64)
    shown = torch.poisson(torch.full((CLASSES,), 0.3, dtype=torch.float64))
    hidden = torch.logspace(0, -3, HIDDEN, dtype=torch.float64)
    loss = torch.cat([hidden, shown / SAMPLES])[:, None] * options
    error = torch.cat([0.1 * hidden, shown.sqrt() / SAMPLES])[:, None] * options
    return profile, arrays.model_copy(update={"channel_loss": loss, "channel_error": error})


def test_classes_that_few_samples_show_are_drawn_together(scored: tuple[Profile, ProfileArrays]) -> None:
    profile, arrays = scored
    own, pooled = arrays.channel_loss.numpy(), pooled_scores(profile, arrays)
    assert (pooled[:HIDDEN] == own[:HIDDEN]).all()
    assert pooled[HIDDEN:].sum(0) == pytest.approx(own[HIDDEN:].sum(0))
    assert (pooled[HIDDEN:].std(0) < 0.3 * own[HIDDEN:].std(0)).all()
    assert (own[HIDDEN:].min(0) == 0).all()
    assert (pooled[HIDDEN:].min(0) > 0.5 * pooled[HIDDEN:].mean(0)).all()


def test_plans_predict_what_they_are_chosen_by(scored: tuple[Profile, ProfileArrays]) -> None:
    profile, arrays = scored
    plan = solve_plan(profile, arrays, "4b", "channel", objective=Objective.ADDITIVE)
    assert plan.certificate is not None
    assert plan.predicted_loss == pytest.approx(plan.certificate.objective, rel=1e-9)
    bits = [int(option[1:]) for option in plan.layers[1].strip_options()]
    assert min(bits) >= max(bits) - 2
