"""Plans of activations: what they refuse, and what values take in memory."""

from __future__ import annotations

from fractions import Fraction

import pytest
from pydantic import ValidationError

from apportion.allocator import (
    ActivationChoice,
    ActivationPlan,
    LiveStep,
    Plan,
    assignment_digest,
    excesses,
    further_costs,
    layer_activations,
    parse_budget,
    peak_bits,
    peak_limits,
)
from apportion.errors import InputError


def value(name: str, option: str, readers: dict[str, int], elements: int = 10) -> ActivationPlan:
    choices = {
        f"a{bits}": ActivationChoice(bits=bits, predicted_loss=1 / bits, step=0.5, zero_point=0)
        for bits in (4, 8)
    }
    return ActivationPlan(name=name, option=option, elements=elements, readers=readers, choices=choices)


LIVE = (
    LiveStep(operation="relu", floats=5, values=("x", "y")),
    LiveStep(operation="add", floats=20, values=("y",)),
)


def test_the_peak_is_the_greatest_sum_of_what_is_alive() -> None:
    elements = {"x": 10, "y": 30}
    assert peak_bits(LIVE, elements, {"x": 8, "y": 4}) == Fraction(max(160 + 80 + 120, 640 + 120))
    assert peak_bits(LIVE, elements, {"x": 8, "y": 8}) == 640 + 240
    # With 900 bits only the second can bind, and leaves 260 to its values.
    assert peak_limits(LIVE, elements, {"x": 8, "y": 9}, 900) == [(LIVE[1], 260)]


def test_a_layers_activations_are_what_it_reads_times_its_work() -> None:
    values = [value("x", "a4", {"one": 3, "two": 5}), value("y", "a8", {"two": 7})]
    assert layer_activations(values) == {"one": 12, "two": 5 * 4 + 7 * 8}


def test_a_plan_counts_its_memory_and_tells_edits_by_its_digest(plan: Plan) -> None:
    name = plan.layers[0].name
    values = (value("x", "a4", {name: 3}), value("y", "a8", {name: 4}, elements=30))
    stored = Plan.model_validate(
        plan.model_dump(exclude_none=True)
        | {
            "activations": [each.model_dump() for each in values],
            "live": [each.model_dump() for each in LIVE],
        }
    )
    assert further_costs(stored)["act_memory"] == Fraction(640 + 240, 8)
    tight = stored.model_copy(update={"budgets": ("act_memory=109B",)})
    (excess,) = excesses(tight)
    assert (excess.quantity, excess.taken, excess.limit) == ("act_memory", 110, 109)
    assert not excesses(stored.model_copy(update={"budgets": ("act_memory=110B",)}))
    edited = values[0].model_copy(update={"option": "a8"})
    assert assignment_digest(plan.layers, values) != assignment_digest(plan.layers, (edited, values[1]))
    assert assignment_digest(plan.layers) != assignment_digest(plan.layers, values)
    assert stored.main_option().endswith("a8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"option": "a5"}, "value 'x' has option a5, which is not among its choices"),
        ({"choices": {"a4": {"bits": 4, "predicted_loss": 0.0, "step": 0.1}}}, "go together"),
        (
            {"choices": {"a4": {"bits": 4, "predicted_loss": 0.0, "step": 0.1, "zero_point": 16}}},
            "the zero point is 16; with 4 bits it is 0 to 15",
        ),
        ({"readers": {"nowhere": 3}}, "value 'x' is read by 'nowhere', which is not a layer"),
        ({"name": "y"}, "two activations have the same name"),
    ],
)
def test_values_that_cannot_be_are_refused(plan: Plan, change: dict[str, object], message: str) -> None:
    name = plan.layers[0].name
    first = value("x", "a4", {name: 3}).model_dump() | change
    document = plan.model_dump(exclude_none=True)
    document["activations"] = [first, value("y", "a4", {name: 3}).model_dump()]
    with pytest.raises(ValidationError, match=message):
        Plan.model_validate(document)


def test_memory_is_limited_in_bytes() -> None:
    budget = parse_budget("act_memory=1.5KiB")
    assert (budget.quantity, budget.value, str(budget)) == ("act_memory", 1536, "act_memory=1.5KiB")
    with pytest.raises(InputError, match="'M' in the budget 'act_memory=2M' is not a unit"):
        parse_budget("act_memory=2M")
