"""What no sample reaches is named, and its score is what a use costs elsewhere, not zero."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from apportion.errors import InputError
from apportion.network import Data, Network, capture
from apportion.quantizer import Quantizer, parse_options
from apportion.sensitivity import (
    FisherSettings,
    Profile,
    ProfileArrays,
    measure_profile,
    refine_plan,
    solve_plan,
)
from apportion.sensitivity.candidates import perturbations
from apportion.sensitivity.joint import Objective, joint_problem, unit_factors
from apportion.sensitivity.stability import _scores_of
from apportion.sensitivity.task import pose_task

OPTIONS = parse_options("w2..6")
# Factors are summed in float32.
FLOAT32 = 1e-5


class Words(nn.Module):
    """A table of which few rows are used, and a choice of which one side is never taken."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.side0 = nn.Linear(8, 8, bias=False)
        self.side1 = nn.Linear(8, 8, bias=False)
        self.head = nn.Linear(8, 6)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        chosen = (ids < 15)[..., None].to(x.dtype)
        return self.head(x + self.side0(x * chosen).tanh() + self.side1(x * (1 - chosen)).tanh())


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return capture(Words().eval(), torch.zeros(2, 7, dtype=torch.int64))


def measured(network: Network, ids: Tensor) -> tuple[Profile, ProfileArrays]:
    profile, arrays = measure_profile(
        network, Data(ids, None, "ids"), OPTIONS, settings=FisherSettings(share=1.0)
    )
    assert arrays is not None
    return profile, arrays


@pytest.fixture(scope="module")
def ids() -> Tensor:
    """The rows 0 to 11, the last two of them once each."""
    drawn = torch.randint(0, 10, (24, 7), generator=torch.Generator().manual_seed(0))
    drawn[3, 4], drawn[5, 1] = 10, 11
    return drawn


def test_floors_are_the_mean_cost_of_a_use_times_the_expected_uses(network: Network, ids: Tensor) -> None:
    profile, arrays = measured(network, ids)
    assert profile.unused == {"table": 8, "side1": 8}
    table, first, second = network.layers[:3]
    changes = {
        layer.name: perturbations(network, layer, OPTIONS, Quantizer()).double().square().sum(2)
        for layer in (table, first, second)
    }
    loss = arrays.channel_loss
    counts = [int((ids == row).sum()) for row in range(20)]
    for option in range(len(OPTIONS)):
        spent = sum(counts[row] * float(changes["table"][row, option]) for row in range(12))
        cost = float(loss[:12, option].sum()) / spent
        for row in range(12, 20):
            # Two rows seen once, eight never.
            expected = 2 / 8 * cost * float(changes["table"][row, option])
            assert float(loss[row, option]) == pytest.approx(expected, rel=1e-6)
        spent = ids.numel() * float(changes["side0"][:, option].sum())
        cost = float(loss[20:28, option].sum()) / spent
        for channel in range(8):
            expected = cost * float(changes["side1"][channel, option])
            assert float(loss[28 + channel, option]) == pytest.approx(expected, rel=1e-6)
    scores = profile.layers[2].scores
    assert [score.loss for score in scores] == pytest.approx(loss[28:36].sum(0).tolist())


def test_where_every_row_and_layer_is_reached_nothing_is_added(network: Network) -> None:
    every = torch.arange(20).repeat(7).view(20, 7)
    profile, arrays = measured(network, every)
    assert profile.unused == {}
    loss = arrays.projections.double().square().sum(1).sum(0) / 2 / 20
    for row, layer in enumerate(profile.layers):
        assert [score.loss for score in layer.scores] == pytest.approx(loss[row].tolist())


@pytest.mark.parametrize("objective", ["additive", "joint"])
def test_a_plan_spends_bits_on_what_was_not_reached(network: Network, ids: Tensor, objective: str) -> None:
    profile, arrays = measured(network, ids)
    plan = solve_plan(profile, arrays, "8b", "channel", objective=Objective(objective))
    options = {layer.name: layer.strip_options() for layer in plan.layers}
    # Eight bits per weight are codes of more than five: nothing is left at the least.
    assert "w2" not in options["table"][12:]
    assert "w2" not in options["side1"]


@pytest.mark.parametrize("shrinkage", [0.0, 0.5, 0.95])
def test_a_choice_has_one_joint_loss_however_its_layers_are_cut_into_units(
    network: Network, ids: Tensor, shrinkage: float
) -> None:
    task = pose_task(*measured(network, ids), "8b", "channel")
    strips = np.full(len(task.posed.member), 1)
    losses = [
        joint_problem(each, shrinkage).loss_of(each.choice_of_strips(strips))
        for each in (task, task.with_plain(frozenset({0})), task.with_plain(frozenset(task.posed.coded)))
    ]
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=FLOAT32)


def test_moves_by_measured_loss_do_not_take_the_bits_of_what_was_not_reached(
    network: Network, ids: Tensor
) -> None:
    profile, arrays = measured(network, ids)
    plan = solve_plan(profile, arrays, "8b", "channel")
    refined = refine_plan(network, Data(ids, None, "ids"), profile, arrays, plan, 4)
    options = {layer.name: layer.strip_options() for layer in refined.layers}
    assert "w2" not in options["table"][12:]
    assert "w2" not in options["side1"]


def test_floors_have_no_products(network: Network, ids: Tensor) -> None:
    profile, arrays = measured(network, ids)
    factors = unit_factors(pose_task(profile, arrays, "6b", "channel"))
    assert not factors[:, 12:20].any()
    assert not factors[:, 28:36].any()


def test_a_network_whose_output_nothing_changes_is_refused(ids: Tensor) -> None:
    class Certain(Words):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids) * 0 + torch.tensor([1e4, 0, 0, 0, 0, 0])

    network = capture(Certain().eval(), torch.zeros(2, 7, dtype=torch.int64))
    with pytest.raises(InputError, match="no option changes the network's output on data 'ids'"):
        measured(network, ids)


def test_rows_that_one_sample_has_are_no_floors_when_more_samples_are_added() -> None:
    torch.manual_seed(0)
    network = capture(
        nn.Sequential(nn.Embedding(60, 8), nn.Flatten(), nn.Linear(32, 6)).eval(),
        torch.zeros(2, 4, dtype=torch.int64),
    )
    ids = torch.randint(0, 40, (16, 4), generator=torch.Generator().manual_seed(0))
    profile, arrays = measured(network, ids)
    scores = _scores_of(profile, arrays)
    reached = torch.zeros(60, dtype=torch.bool)
    reached[ids.unique()] = True
    once = sum(int((ids == row).any(1).sum()) == 1 for row in range(60))
    assert once > 5
    assert bool((scores.channel_loss[:60][reached] > 0).any(1).all())
    assert not scores.channel_loss[:60][~reached].any()
