"""What the lines under a plan's table say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from apportion.allocator import Drop, DropKind, Plan, Search, SearchOutcome, Trial, plan_data, read_plan
from apportion.cli.tables import plan_lines, plan_table


@pytest.fixture
def with_room(finished: Path) -> Callable[..., Plan]:
    """The finished plan under other budgets, with a price for each."""

    def make(*budgets: str) -> Plan:
        plan = read_plan(finished / "plan.json")
        assert plan.certificate is not None
        prices = {"size": 1e-7, "latency": 0.25}
        costs = dict.fromkeys(plan.options, 2.0)
        return plan.model_copy(
            update={
                "budgets": budgets,
                "tables": {"latency": {layer.name: costs for layer in plan.layers}},
                "certificate": plan.certificate.model_copy(update={"shadow_prices": prices}),
            }
        )

    return make


def test_a_price_stands_alone_where_the_budget_is_used_up(with_room: Callable[..., Plan]) -> None:
    plan = with_room("4b")
    taken = 2 * len(plan.layers)
    lines = plan_lines(with_room("4b", f"latency={taken}"))
    saved = 1e-7 * 4 * plan.complexity.weight_count / 1000
    assert f"0.1% more bits for the weights would save about {saved:.2g} of predicted loss" in lines
    assert f"0.1% more latency would save about {0.25 * taken / 1000:.2g} of predicted loss" in lines


def test_a_price_is_for_what_goes_beyond_the_room_that_is_left(with_room: Callable[..., Plan]) -> None:
    taken = 2 * len(with_room("4b").layers)
    lines = plan_lines(with_room("9b", f"latency={taken + 3}"))
    assert (
        f"3 of the budget latency={taken + 3} are left, as options are whole; beyond these, 0.1% more "
        f"latency would save about {0.25 * (taken + 3) / 1000:.2g} of predicted loss"
    ) in lines
    assert any("KiB of the budget 9b are left" in line for line in lines)


def test_it_is_said_which_part_of_the_interactions_the_losses_count(with_room: Callable[..., Plan]) -> None:
    plan = with_room("4b")
    assert plan.certificate is not None
    certificate = plan.certificate.model_copy(update={"objective_form": "joint", "shrinkage": 0.85})
    counted = "these losses count 85% of the interactions between units"
    assert counted not in plan_lines(plan)
    assert counted in plan_lines(plan.model_copy(update={"certificate": certificate}))


@pytest.mark.parametrize(("trials", "counted"), [(1, "1 evaluation; "), (2, "2 evaluations; ")])
def test_a_plan_of_a_search_is_titled_by_its_limit_and_its_evaluations_are_counted(
    finished: Path, trials: int, counted: str
) -> None:
    plan = read_plan(finished / "plan.json")
    trial = Trial(
        name="per channel",
        weight_bits=plan.complexity.size_bits - plan.complexity.fixed_bits,
        average_bits=4.0,
        loss=0.001,
        drop=Drop(kind=DropKind.KL, value=0.001, low=0.0, high=0.002),
        within=True,
    )
    search = Search(
        limit="0.01kl", data="digits", samples=500, outcome=SearchOutcome.LEAST, trials=(trial,) * trials
    )
    found = plan.model_copy(update={"search": search})
    assert any(counted in line for line in plan_lines(found))
    assert plan_table(found).title == "plan within a drop of 0.01kl, chosen per channel"
    assert plan_data(found).title.startswith("Plan within a drop of 0.01kl, chosen per channel: 4.00 bits")
