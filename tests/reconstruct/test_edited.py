"""Plans edited by hand: counted again, without a proof, and never over their own budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from apportion.allocator import Plan, assignment_digest, read_plan, write_plan
from apportion.errors import InputError
from apportion.quantizer import parse_option, stored_bits
from apportion.reconstruct import accept_edits
from apportion.sensitivity import Profile, ProfileArrays, solve_plan


def edited(plan: Plan, name: str, **update: Any) -> Plan:
    """The plan as if a person had written other options for a layer, and nothing else."""
    document = plan.model_dump(exclude_none=True)
    (layer,) = (layer for layer in document["layers"] if layer["name"] == name)
    layer.pop("option", None)
    layer.pop("channels", None)
    layer.update(update)
    return Plan.model_validate(document)


@pytest.fixture(scope="module")
def channel_plan(profile: tuple[Profile, ProfileArrays], plan: Plan) -> Plan:
    """A plan with a little room in its budget, in which channels may be edited."""
    return plan.model_copy(update={"unit": "channel", "budget": "4.2b"})


@pytest.mark.parametrize("budget", ["3.5b", "4b", "60KB"])
def test_a_plan_that_nobody_touched_is_returned_as_it_is(
    profile: tuple[Profile, ProfileArrays], tmp_path: Path, budget: str
) -> None:
    plan = solve_plan(*profile, budget, "layer")
    assert accept_edits(plan) is plan
    write_plan(tmp_path / "plan.json", plan)
    read = read_plan(tmp_path / "plan.json")
    assert accept_edits(read) is read


def test_an_edit_counts_again_and_drops_what_no_longer_holds(channel_plan: Plan) -> None:
    assert channel_plan.certificate is not None
    assert channel_plan.layers[0].option != "w2x2"
    accepted = accept_edits(edited(channel_plan, "stem", option="w2x2"))
    layer = next(layer for layer in accepted.layers if layer.name == "stem")
    assert layer.size_bits == parse_option("w2x2").size_bits(16, 9)
    assert layer.mean_bits == layer.size_bits / 144
    assert accepted.certificate is None
    assert accepted.guard is None
    assert accepted.measured is None
    assert accepted.assignment == assignment_digest(accepted.layers) != channel_plan.assignment
    weights = sum(each.size_bits for each in accepted.layers)
    assert accepted.complexity.size_bits == weights + channel_plan.complexity.fixed_bits
    assert accepted.complexity.average_bits == weights / channel_plan.complexity.weight_count
    # Accepted once, the plan is one that nobody touched.
    assert accept_edits(accepted) is accepted


def test_channels_of_an_edited_layer_pay_for_the_codes_that_name_their_options(channel_plan: Plan) -> None:
    accepted = accept_edits(edited(channel_plan, "stem", channels={"w2": "0-3", "w8": "4-15"}))
    layer = next(layer for layer in accepted.layers if layer.name == "stem")
    options = [parse_option("w2")] * 4 + [parse_option("w8")] * 12
    assert layer.size_bits == stored_bits(options, 9, len(channel_plan.options))
    assert layer.channel_options() == ("w2",) * 4 + ("w8",) * 12


def test_a_size_written_by_hand_is_counted_again(channel_plan: Plan) -> None:
    option = channel_plan.layers[0].option
    name = channel_plan.layers[0].name
    accepted = accept_edits(edited(channel_plan, name, option=option, size_bits=1))
    assert accepted.layers == channel_plan.layers


def test_an_edit_over_the_budget_is_refused_and_says_by_how_much(plan: Plan) -> None:
    largest = max(plan.layers, key=lambda layer: layer.size_bits)
    with pytest.raises(InputError, match=r"the edited plan takes [\d,]+ bits .* more than its budget 4b"):
        accept_edits(edited(plan, largest.name, option="w8"))


@pytest.mark.parametrize("option", ["w7", "w4g64", "nonsense", "w99"])
def test_an_option_outside_the_plans_set_is_refused_with_the_layer(plan: Plan, option: str) -> None:
    with pytest.raises(InputError, match=rf"layer 'stem' has option {option}, which is not in the plan's"):
        accept_edits(edited(plan, "stem", option=option))
