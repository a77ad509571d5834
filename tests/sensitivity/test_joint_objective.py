"""The joint objective of a profile: what its factors are, how they are shrunk, and what a plan says of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from apportion.allocator import Constraints, MultiProblem
from apportion.errors import InputError
from apportion.network import Data, Network
from apportion.quantizer import parse_options
from apportion.sensitivity import (
    FisherSettings,
    Labels,
    Objective,
    Profile,
    ProfileArrays,
    best_uniform_plan,
    joint_problem,
    measure_profile,
    pose_task,
    read_profile,
    solve_plan,
    unit_factors,
    write_profile,
)
from apportion.sensitivity.joint import SHRINKAGES, choose_shrinkage

Scored = tuple[Profile, ProfileArrays]
# Factors are kept in bfloat16, with 8 bits of precision.
ROUNDED = 2e-2
# Seconds that have passed before a search begins.
OVER = 1e-9


@pytest.fixture(scope="module")
def scored(network: Network, data: Data) -> Scored:
    profile, arrays = measure_profile(
        network, data, parse_options("w2..6"), settings=FisherSettings(labels=Labels.ALL, share=1.0)
    )
    assert arrays is not None
    return profile, arrays


def test_squares_of_the_factors_are_the_scores_of_channels(scored: Scored) -> None:
    task = pose_task(*scored, "4b", "channel")
    own = np.square(unit_factors(task), dtype=np.float64).sum(axis=2) / 2
    # 64 samples in 10 directions share 512 rows, so squares keep their mean, not their values.
    totals, expected = own.sum(axis=0), task.problem.loss.sum(axis=0)
    np.testing.assert_allclose(totals, expected, rtol=0.1)


def test_squares_of_the_factors_are_the_scores_of_layers_exactly(scored: Scored) -> None:
    task = pose_task(*scored, "4b", "layer")
    own = np.square(unit_factors(task), dtype=np.float64).sum(axis=2) / 2
    np.testing.assert_allclose(own, task.problem.loss, rtol=1e-5)


def test_rows_of_a_tied_group_are_sums_over_its_layers(scored: Scored) -> None:
    names = [layer.name for layer in scored[0].layers]
    apart = unit_factors(pose_task(*scored, "4b", "layer"))
    ties = Constraints(tie=((names[0], names[2]),))
    tied = pose_task(*scored, "4b", "layer", constraints=ties)
    group = tied.posed.member[tied.posed.starts[0]]
    np.testing.assert_allclose(unit_factors(tied)[group], apart[0] + apart[2], rtol=1e-5, atol=1e-7)


def test_a_choice_of_whole_layers_costs_the_same_per_channel(scored: Scored) -> None:
    by_layer, by_channel = (pose_task(*scored, "5b", unit) for unit in ("layer", "channel"))
    losses = [
        joint_problem(task, 1.0).loss_of(np.full(task.problem.units, 1)) for task in (by_layer, by_channel)
    ]
    # One sketch of 512 rows against the exact sum.
    assert losses[1] == pytest.approx(losses[0], rel=0.15)


def test_a_shrinkage_of_nothing_is_the_additive_problem(scored: Scored) -> None:
    task = pose_task(*scored, "4b", "channel")
    joint = joint_problem(task, 0.0)
    choice = np.full(task.problem.units, 2)
    assert joint.loss_of(choice) == pytest.approx(float(task.problem.loss_of(choice).sum()))


def test_the_shrinkage_is_one_of_those_tried_and_is_repeated(scored: Scored) -> None:
    task = pose_task(*scored, "3b", "channel")
    factors = unit_factors(task)
    chosen = choose_shrinkage(task.problem, factors)
    assert chosen in SHRINKAGES
    assert chosen == choose_shrinkage(task.problem, factors)


def test_interactions_that_every_sample_confirms_are_used() -> None:
    generator = np.random.default_rng(0)
    cost = np.tile(np.array([0, 1, 2, 3]), (40, 1))
    # All units act along one direction per sample, each option forward or backward.
    size = np.outer(generator.uniform(0.5, 2, 40), [4.0, 2.0, 1.0, 0.5])
    effect = size * generator.choice([-1, 1], (40, 4))
    factors = (generator.normal(size=(1, 1, 64)) * effect[..., None]).astype(np.float32)
    problem = MultiProblem(32 * effect**2, cost[None], (60,), ("size",))
    assert choose_shrinkage(problem, factors) > 0
    # No other one is tried once time is up, and interactions count nevertheless.
    assert choose_shrinkage(problem, factors, time_limit_s=OVER) == 0.7


def test_where_it_makes_no_difference_the_least_shrinkage_is_taken() -> None:
    factors = np.random.default_rng(0).normal(size=(5, 3, 8)).astype(np.float32)
    cost = np.tile(np.array([0, 1, 2]), (5, 1))
    own = np.square(factors, dtype=np.float64).sum(axis=2) / 2
    # There is one choice within the budget.
    assert choose_shrinkage(MultiProblem(own, cost[None], (0,), ("size",)), factors) == 0


def test_a_joint_plan_says_so_and_keeps_its_budget(scored: Scored) -> None:
    plan = solve_plan(*scored, "4b", "channel", objective=Objective.JOINT)
    assert plan.certificate is not None
    assert plan.certificate.objective_form == "joint"
    assert plan.predicted_loss == plan.certificate.objective
    assert plan.certificate.bound <= plan.certificate.objective
    assert plan.complexity.average_bits <= 4


def test_a_joint_plan_says_which_part_of_the_interactions_its_losses_count(scored: Scored) -> None:
    for limit in (None, OVER):
        plan = solve_plan(*scored, "4b", "channel", time_limit_s=limit)
        assert plan.certificate is not None
        assert plan.certificate.shrinkage is not None
        task = pose_task(*scored, "4b", "channel")
        loss = joint_problem(task, plan.certificate.shrinkage).loss_of(task.choice_of(plan))
        assert plan.certificate.objective == pytest.approx(loss)
    additive = solve_plan(*scored, "4b", "layer").certificate
    assert additive is not None
    assert additive.shrinkage is None


def test_a_bound_of_losses_with_interactions_is_not_handed_to_a_uniform_plan(scored: Scored) -> None:
    for objective in (Objective.JOINT, Objective.BLOCK):
        uniform = best_uniform_plan(scored[0], solve_plan(*scored, "4b", "layer", objective=objective))
        # Its own predicted loss is the sum over the layers.
        assert uniform is not None
        assert uniform.certificate is None


def test_the_default_is_joint_for_channels_and_additive_for_layers(scored: Scored) -> None:
    forms = {}
    for unit in ("layer", "channel"):
        certificate = solve_plan(*scored, "4b", unit).certificate
        assert certificate is not None
        forms[unit] = certificate.objective_form
    assert forms == {"layer": "additive", "channel": "joint"}


def test_a_time_limit_holds_for_every_search_of_a_joint_plan(scored: Scored) -> None:
    plan = solve_plan(*scored, "3b", "channel", objective=Objective.JOINT, time_limit_s=OVER)
    task = pose_task(*scored, "3b", "channel")
    additive = solve_plan(*scored, "3b", "channel", objective=Objective.ADDITIVE, time_limit_s=OVER)
    assert plan.assignment == additive.assignment
    assert plan.predicted_loss == pytest.approx(joint_problem(task, 0.7).loss_of(task.choice_of(plan)))
    with pytest.raises(InputError, match="time limit is 0 s"):
        joint_problem(task, time_limit_s=0)
    with pytest.raises(InputError, match="time limit is 0 s"):
        task.plan_of(np.zeros(task.problem.units, np.intp), time_limit_s=0)


def test_a_profile_without_factors_is_refused_with_what_to_do(scored: Scored) -> None:
    profile, arrays = scored
    bare = arrays.model_copy(update={"factors": None})
    with pytest.raises(InputError, match=r"no projections per channel.*--objective additive"):
        solve_plan(profile, bare, "4b", "channel", objective=Objective.JOINT)
    certificate = solve_plan(profile, bare, "4b", "channel").certificate
    assert certificate is not None
    assert certificate.objective_form == "additive"


def test_exact_scores_have_no_interactions(network: Network, data: Data) -> None:
    few = Data(data.inputs[:4], None, data.name)
    profile, arrays = measure_profile(network, few, parse_options("w4,w8"), method="exact")
    with pytest.raises(InputError, match="exact scores, which say nothing about interactions"):
        solve_plan(profile, arrays, "6b", "layer", objective=Objective.JOINT)


def test_factors_survive_the_file(scored: Scored, tmp_path: Path) -> None:
    write_profile(tmp_path / "profile.json", *scored)
    _, arrays = read_profile(tmp_path / "profile.json")
    assert arrays is not None
    assert arrays.factors is not None
    assert torch.equal(arrays.factors, scored[1].factors)
