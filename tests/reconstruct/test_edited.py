"""Plans edited by hand: counted again, without a proof, and never over their own budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from apportion.allocator import Constraints, CostTable, Plan, assignment_digest, read_plan, write_plan
from apportion.errors import InputError
from apportion.quantizer import parse_option, stored_bits
from apportion.reconstruct import accept_edits
from apportion.sensitivity import Profile, ProfileArrays, solve_plan


def edited(plan: Plan, name: str, **update: Any) -> Plan:
    """The plan as if a person had written other options for a layer, and nothing else."""
    document = plan.model_dump(exclude_none=True)
    (layer,) = (layer for layer in document["layers"] if layer["name"] == name)
    layer.pop("option", None)
    layer.pop("strips", None)
    layer.update(update)
    return Plan.model_validate(document)


@pytest.fixture(scope="module")
def channel_plan(profile: tuple[Profile, ProfileArrays], plan: Plan) -> Plan:
    """A plan with a little room in its budget, in which channels may be edited."""
    return _certified(plan.model_copy(update={"unit": "channel", "budgets": ("4.2b",)}))


def _certified(plan: Plan) -> Plan:
    """The plan as if it had been solved under the budgets and rules that it states."""
    assert plan.certificate is not None
    certificate = plan.certificate.of_problem(plan.problem())
    return plan.model_copy(update={"certificate": certificate})


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


@pytest.mark.parametrize(
    "edit", [{"budgets": ("4.5b",)}, {"constraints": None}, {"constraints": Constraints(exclude=("other",))}]
)
def test_a_proof_ends_with_the_budgets_and_rules_that_it_is_about(
    profile: tuple[Profile, ProfileArrays], edit: dict[str, Any]
) -> None:
    plan = solve_plan(*profile, "4b", "layer", constraints=Constraints(forbid={"stem": ("w2",)}))
    assert accept_edits(plan) is plan
    accepted = accept_edits(plan.model_copy(update=edit))
    assert accepted.certificate is None
    assert [layer.option for layer in accepted.layers] == [layer.option for layer in plan.layers]


def test_channels_of_an_edited_layer_pay_for_the_codes_that_name_their_options(channel_plan: Plan) -> None:
    accepted = accept_edits(edited(channel_plan, "stem", strips={"w2": "0-3", "w8": "4-15"}))
    layer = next(layer for layer in accepted.layers if layer.name == "stem")
    options = [parse_option("w2")] * 4 + [parse_option("w8")] * 12
    assert layer.size_bits == stored_bits(options, 9, len(channel_plan.options))
    assert layer.strip_options() == ("w2",) * 4 + ("w8",) * 12


def test_a_size_written_by_hand_is_counted_again(channel_plan: Plan) -> None:
    option = channel_plan.layers[0].option
    name = channel_plan.layers[0].name
    accepted = accept_edits(edited(channel_plan, name, option=option, size_bits=1))
    assert [layer.size_bits for layer in accepted.layers] == [
        layer.size_bits for layer in channel_plan.layers
    ]


def other_search(plan: Plan) -> Plan:
    return plan.model_copy(update={"quantizer": plan.quantizer | {"search": "minmax"}})


def lower_loss(plan: Plan) -> Plan:
    return plan.model_copy(update={"predicted_loss": plan.predicted_loss / 2})


def lower_average(plan: Plan) -> Plan:
    complexity = plan.complexity.model_copy(update={"average_bits": 1.0})
    return plan.model_copy(update={"complexity": complexity})


def lower_mean(plan: Plan) -> Plan:
    first = plan.layers[0].model_copy(update={"mean_bits": 1.0})
    return plan.model_copy(update={"layers": (first, *plan.layers[1:])})


@pytest.mark.parametrize("edit", [other_search, lower_loss, lower_average, lower_mean])
def test_what_follows_from_the_choice_is_counted_and_what_is_proven_holds_for_nothing_else(
    channel_plan: Plan, edit: Any
) -> None:
    assert accept_edits(channel_plan) is channel_plan
    accepted = accept_edits(edit(channel_plan))
    assert accepted.complexity == channel_plan.complexity
    assert [layer.mean_bits for layer in accepted.layers] == [
        layer.mean_bits for layer in channel_plan.layers
    ]
    assert accepted.certificate is None
    # The scores that it was made from know nothing of the edited plan.
    assert accepted.predicted_loss is None
    assert {layer.predicted_loss for layer in accepted.layers} == {None}
    assert accept_edits(accepted) is accepted


def test_an_edit_over_the_budget_is_refused_and_says_by_how_much(plan: Plan) -> None:
    largest = max(plan.layers, key=lambda layer: layer.size_bits)
    with pytest.raises(InputError, match=r"the edited plan takes [\d,]+ bits .* more than its budget 4b"):
        accept_edits(edited(plan, largest.name, option="w8"))


@pytest.mark.parametrize("option", ["w7", "w4g64", "nonsense", "w99"])
def test_an_option_outside_the_plans_set_is_refused_with_the_layer(plan: Plan, option: str) -> None:
    with pytest.raises(InputError, match=rf"layer 'stem' has option {option}, which is not in the plan's"):
        accept_edits(edited(plan, "stem", option=option))


def limited(plan: Plan, **update: Any) -> Plan:
    """A plan with other limits, in which nothing was edited."""
    found = Plan.model_validate(plan.model_dump(exclude_none=True) | update)
    return _certified(found)


def test_an_edit_against_a_constraint_names_the_rule(plan: Plan) -> None:
    names = [layer.name for layer in plan.layers]
    pinned = limited(plan, constraints={"pin": {"stem": plan.layers[0].option}}, budgets=("40b",))
    assert accept_edits(pinned) is pinned
    other = next(option for option in ("w2", "w8") if option != plan.layers[0].option)
    with pytest.raises(InputError, match=rf"layer 'stem' has option {other}, against .* rule 'pin stem=w"):
        accept_edits(edited(pinned, "stem", option=other))
    same = edited(edited(plan, names[1], option="w4"), names[2], option="w4")
    tied = limited(same, constraints={"tie": [[names[1], names[2]]]}, budgets=("40b",))
    accept_edits(tied)
    with pytest.raises(
        InputError, match=rf"{names[1]}, {names[2]} are tied in this plan, but have .* w4, w8"
    ):
        accept_edits(edited(tied, names[2], option="w8"))


def test_a_rule_written_into_a_plan_that_breaks_it_is_noticed(plan: Plan) -> None:
    option = plan.layers[0].option
    broken = limited(plan, constraints={"forbid": {"stem": [option]}})
    with pytest.raises(
        InputError, match=rf"layer 'stem' has option {option}, against the plan's rule 'forbid"
    ):
        accept_edits(broken)


def test_an_edit_over_a_budget_of_another_quantity_names_it_and_costs_are_counted_again(plan: Plan) -> None:
    costs = {layer.name: {option: float(i) for i, option in enumerate(plan.options)} for layer in plan.layers}
    chosen = {layer.name: layer.option or "" for layer in plan.layers}
    latency = sum(costs[name][option] for name, option in chosen.items())
    # Options stand in the order of their bits, so w8 is the last and the slowest.
    name = next(name for name, option in chosen.items() if option != "w8")
    more = costs[name]["w8"] - costs[name][chosen[name]]
    given = limited(plan, tables={"latency": costs}, budgets=("40b", f"latency={latency + more}"))
    accepted = accept_edits(edited(given, name, option="w8"))
    assert accepted.complexity.costs == {"latency": latency + more}
    tight = limited(given, budgets=("40b", f"latency={latency}"))
    message = rf"the edited plan has latency [\d.]+, {more:g} more than its budget latency={latency} allows"
    with pytest.raises(InputError, match=message):
        accept_edits(edited(tight, name, option="w8"))


def test_a_budget_of_a_quantity_without_a_table_is_refused(plan: Plan) -> None:
    with pytest.raises(InputError, match="budget latency=3 limits latency, but its tables are none"):
        accept_edits(limited(plan, budgets=("4b", "latency=3")))


def test_costs_in_whole_numbers_are_those_that_the_plan_states(
    profile: tuple[Profile, ProfileArrays], tmp_path: Path
) -> None:
    costs = {layer.name: {"w2": 1, "w2x2": 2, "w4": 2, "w8": 4} for layer in profile[0].layers}
    used = {
        layer: {o: c for o, c in each.items() if o in profile[0].options} for layer, each in costs.items()
    }
    missing = dict.fromkeys(profile[0].options, 3)
    table = CostTable("latency", {layer: missing | each for layer, each in used.items()})
    plan = solve_plan(*profile, ["4b", "latency=100"], "layer", tables=[table])
    write_plan(tmp_path / "plan.json", plan)
    assert accept_edits(read_plan(tmp_path / "plan.json")).certificate is not None
