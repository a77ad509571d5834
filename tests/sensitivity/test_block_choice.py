"""The block objective: no choice loses less with the interactions within blocks, and ties join blocks."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from apportion.allocator import Constraints, Status
from apportion.errors import InputError
from apportion.network import Data, Network
from apportion.quantizer import parse_options
from apportion.sensitivity import Objective, Profile, ProfileArrays, measure_profile, pose_task, solve_plan

Scored = tuple[Profile, ProfileArrays]


@pytest.fixture(scope="module")
def scored(network: Network, data: Data) -> Scored:
    few = Data(data.inputs[:32], None, data.name)
    profile, arrays = measure_profile(network, few, parse_options("w2,w4"))
    assert arrays is not None
    return profile, arrays


def block_loss(scored: Scored, choice: tuple[int, ...]) -> float:
    """Sum over blocks of half the mean squared sum of their layers' projections, by definition."""
    profile, arrays = scored
    blocks = np.array([layer.block for layer in profile.layers])
    chosen = arrays.projections.double().numpy()[:, :, np.arange(len(choice)), list(choice)]
    sums = [np.square(chosen[:, :, blocks == block].sum(2)).sum() for block in np.unique(blocks)]
    return float(sum(sums)) / 2 / profile.samples


@pytest.mark.parametrize("budget", ["2.6b", "3.4b"])
def test_no_choice_within_the_budget_loses_less(scored: Scored, budget: str) -> None:
    profile, _ = scored
    task = pose_task(*scored, budget, "layer")
    plan = solve_plan(*scored, budget, "layer", objective=Objective.BLOCK)
    assert plan.certificate is not None
    assert plan.certificate.status is Status.OPTIMAL
    assert plan.certificate.objective_form == "block"
    fitting = [
        choice
        for choice in product(range(2), repeat=len(profile.layers))
        if task.problem.within(np.array(choice))
    ]
    least = min(block_loss(scored, choice) for choice in fitting)
    own = tuple(profile.options.index(layer.option or "") for layer in plan.layers)
    # Projections are in single precision.
    assert block_loss(scored, own) == pytest.approx(least, rel=1e-5)
    assert plan.predicted_loss == pytest.approx(least, rel=1e-5)


def test_layers_that_are_tied_across_blocks_have_one_option(scored: Scored) -> None:
    first, last = scored[0].layers[0].name, scored[0].layers[-1].name
    assert scored[0].layers[0].block != scored[0].layers[-1].block
    rules = Constraints(tie=((first, last),))
    plan = solve_plan(*scored, "3b", "layer", objective=Objective.BLOCK, constraints=rules)
    assert plan.layers[0].option == plan.layers[-1].option


def test_a_profile_without_blocks_and_other_units_are_refused(scored: Scored) -> None:
    profile, arrays = scored
    with pytest.raises(InputError, match="solve with --unit layer"):
        solve_plan(profile, arrays, "3b", "channel", objective=Objective.BLOCK)
    layers = tuple(layer.model_copy(update={"block": None}) for layer in profile.layers)
    bare = profile.model_copy(update={"layers": layers})
    with pytest.raises(InputError, match="does not say which block layer 'stem' is in"):
        solve_plan(bare, arrays, "3b", "layer", objective=Objective.BLOCK)


def test_a_block_of_too_many_choices_is_refused(network: Network, data: Data) -> None:
    few = Data(data.inputs[:8], None, data.name)
    profile, arrays = measure_profile(network, few, parse_options("w2..8"))
    layers = tuple(layer.model_copy(update={"block": 0}) for layer in profile.layers)
    with pytest.raises(InputError, match="choices, and --objective block takes at most 20,000"):
        solve_plan(
            profile.model_copy(update={"layers": layers}), arrays, "3b", "layer", objective=Objective.BLOCK
        )
