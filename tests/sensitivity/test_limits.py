"""Several budgets, tables of costs and constraints, from a profile to a plan that keeps all of them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from apportion.allocator import (
    Constraints,
    CostTable,
    Plan,
    Status,
    check_rules,
    excesses,
    read_plan,
    write_plan,
)
from apportion.errors import InfeasibleError, InputError
from apportion.network import Network
from apportion.quantizer import option_names, parse_option, parse_options
from apportion.sensitivity import (
    Profile,
    ProfileArrays,
    best_uniform_plan,
    check_feasible,
    solve_plan,
    uniform_options,
)

MakeProfile = Callable[..., tuple[Profile, ProfileArrays]]
A, B, C = (f"layers.{row}.linear" for row in range(3))
units = st.sampled_from(["layer", "channel", "tile:2", "tile:4"])
options = st.sampled_from(["w2", "w3", "w4", "w5"])


def size_table(profile: Profile) -> CostTable:
    """What the layers weigh, as a table."""
    return CostTable(
        "weight",
        {
            layer.name: {score.option: float(score.size_bits) for score in layer.scores}
            for layer in profile.layers
        },
    )


def latency_table(profile: Profile, seed: int = 0) -> CostTable:
    """Costs that have little to do with sizes, in thousandths."""
    costs: dict[str, dict[str, float]] = {}
    for row, layer in enumerate(profile.layers):
        for column, score in enumerate(layer.scores):
            cost = (7919 * (row + 1) * (column + 2) + 104_729 * seed) % 997
            costs.setdefault(layer.name, {})[score.option] = (cost + 1) / 1000
    return CostTable("latency", costs)


def option_of(plan: Plan, name: str) -> str | None:
    return next(layer.option for layer in plan.layers if layer.name == name)


@settings(derandomize=True, deadline=None)
@given(seed=st.integers(0, 1000), tenths=st.integers(33, 60), thousandths=st.integers(600, 2500))
def test_a_plan_per_layer_under_two_budgets_is_the_best_of_all_assignments(
    make_profile: MakeProfile, seed: int, tenths: int, thousandths: int
) -> None:
    profile, arrays = make_profile(seed=seed)
    table, limit = latency_table(profile, seed), tenths / 10 * profile.weight_count
    best = None
    for chosen in itertools.product(*(layer.scores for layer in profile.layers)):
        took = sum(
            round(1000 * table.costs[layer.name][score.option])
            for layer, score in zip(profile.layers, chosen, strict=True)
        )
        if sum(score.size_bits for score in chosen) <= limit and took <= thousandths:
            loss = sum(score.loss for score in chosen)
            best = loss if best is None else min(best, loss)
    budgets = [f"{tenths / 10}b", f"latency={thousandths / 1000}"]
    if best is None:
        with pytest.raises(InfeasibleError, match="latency"):
            solve_plan(profile, arrays, budgets, "layer", tables=[table])
        return
    plan = solve_plan(profile, arrays, budgets, "layer", tables=[table])
    assert plan.budgets == tuple(budgets)
    assert excesses(plan) == ()
    assert plan.complexity.costs["latency"] <= thousandths / 1000
    assert plan.predicted_loss == pytest.approx(best, rel=1e-9)
    assert plan.certificate is not None
    assert plan.certificate.status is Status.OPTIMAL
    assert set(plan.certificate.shadow_prices) == {"size", "latency"}


@settings(derandomize=True, deadline=None)
@given(unit=units, tenths=st.integers(38, 60), seed=st.integers(0, 100), percent=st.integers(50, 90))
def test_no_unit_goes_over_any_of_three_budgets(
    make_profile: MakeProfile, unit: str, tenths: int, seed: int, percent: int
) -> None:
    profile, arrays = make_profile(seed=seed, shapes=((8, 30), (12, 50), (5, 20)))
    table = latency_table(profile, seed)
    spread = [table.costs[layer.name].values() for layer in profile.layers]
    least, most = sum(map(min, spread)), sum(map(max, spread))
    macs = sum(layer.macs for layer in profile.layers)
    latency = f"latency={least + percent / 100 * (most - least):.3f}"
    budgets = [f"{tenths / 10}b", latency, f"bops={macs * 4 * 32}", "90%"]
    try:
        plan = solve_plan(profile, arrays, budgets, unit, tables=[table])
    except InfeasibleError:
        assume(False)
    assert excesses(plan) == ()
    bops = sum(
        layer.macs * parse_option(option).bits * 32 * share
        for layer, planned in zip(profile.layers, plan.layers, strict=True)
        for option, share in planned.option_shares().items()
    )
    assert plan.complexity.costs["bops"] == pytest.approx(bops)
    assert bops <= macs * 4 * 32 * (1 + 1e-12)
    assert plan.complexity.average_bits <= tenths / 10


@pytest.mark.parametrize("budget", [440, 520, 600])
def test_a_table_of_sizes_gives_the_plan_of_that_size(make_profile: MakeProfile, budget: int) -> None:
    profile, arrays = make_profile()
    bits = budget / 100 * profile.weight_count
    by_size = solve_plan(profile, arrays, f"{budget / 100}b", "layer")
    by_table = solve_plan(profile, arrays, [f"weight={int(bits)}"], "layer", tables=[size_table(profile)])
    assert by_table.layers == by_size.layers
    assert by_table.certificate is not None
    assert by_size.certificate is not None
    assert by_table.certificate.shadow_prices == {
        "weight": pytest.approx(by_size.certificate.shadow_prices["size"], rel=1e-9)
    }
    both = solve_plan(
        profile, arrays, [f"{budget / 100}b", f"weight={int(bits)}"], "layer", tables=[size_table(profile)]
    )
    assert both.layers == by_size.layers


def test_prices_are_per_unit_of_the_table(make_profile: MakeProfile) -> None:
    profile, arrays = make_profile()
    table = size_table(profile)
    smaller = CostTable(
        "kilo",
        {name: {option: cost / 1000 for option, cost in row.items()} for name, row in table.costs.items()},
    )
    (price,) = _prices(solve_plan(profile, arrays, ["weight=2000"], "layer", tables=[table])).values()
    (kilo,) = _prices(solve_plan(profile, arrays, ["kilo=2"], "layer", tables=[smaller])).values()
    assert price > 0
    assert kilo == pytest.approx(1000 * price, rel=1e-9)


def test_budgets_of_one_quantity_are_told_apart_and_the_same_said_twice_is_one(
    make_profile: MakeProfile,
) -> None:
    profile, arrays = make_profile()
    plan = solve_plan(profile, arrays, ["4b", "60%", "4b"], "layer")
    assert plan.budgets == ("4b", "60%")
    assert set(_prices(plan)) == {"4b", "60%"}
    assert excesses(plan) == ()


def test_bit_operations_need_no_table_and_one_budget_of_them_is_enough(make_profile: MakeProfile) -> None:
    profile, arrays = make_profile()
    macs = sum(layer.macs for layer in profile.layers)
    plan = solve_plan(profile, arrays, f"bops={macs * 3 * 32}", "layer")
    assert plan.complexity.costs == {"bops": pytest.approx(macs * 3 * 32, rel=0.5)}
    assert plan.complexity.costs["bops"] <= macs * 3 * 32
    assert set(_prices(plan)) == {"bops"}


def test_multiply_accumulates_are_paid_for_every_point(make_profile: MakeProfile) -> None:
    profile, arrays = make_profile(options="w4x1..2")
    macs = sum(layer.macs for layer in profile.layers)
    budget = 3 * macs // 2
    for unit in ("layer", "channel"):
        plan = solve_plan(profile, arrays, f"macs={budget}", unit)
        paid = sum(
            layer.macs * (share.get("w4", 0.0) + 2 * share.get("w4x2", 0.0))
            for layer, share in zip(
                profile.layers, (each.option_shares() for each in plan.layers), strict=True
            )
        )
        assert plan.complexity.costs == {"macs": pytest.approx(paid)}
        assert macs < paid <= budget
    with pytest.raises(InfeasibleError, match=r"macs"):
        solve_plan(profile, arrays, f"macs={macs - 1}", "layer")


@pytest.mark.parametrize(
    ("budgets", "reason"),
    [
        ([], r"no budget is given"),
        (
            ["energy=3"],
            r"energy=3 limits energy, which is none of size, macs, bops, act_memory, latency; .* --table",
        ),
        (
            ["latency=0.001"],
            r"budget latency=0\.001 is below .* per layer: latency is from [\d.]+ to [\d.]+\.",
        ),
        (["2b"], r"budget 2b is below what the options w2, w3, w4, w5 can reach per layer"),
    ],
)
def test_budgets_that_cannot_be_are_refused(
    make_profile: MakeProfile, budgets: list[str], reason: str
) -> None:
    profile, arrays = make_profile()
    with pytest.raises((InputError, InfeasibleError), match=reason):
        solve_plan(profile, arrays, budgets, "layer", tables=[latency_table(profile)])


def test_budgets_that_clash_are_named_in_their_own_units(make_profile: MakeProfile) -> None:
    profile, arrays = make_profile()
    # What is small here is slow.
    slow = dict(zip(profile.options, [0.4, 0.3, 0.2, 0.1], strict=True))
    table = CostTable("latency", {layer.name: slow for layer in profile.layers})
    for budget, unit in (("3.5b", "b"), ("0.26KB", "KB"), ("13.2%", "%")):
        message = (
            rf"\(size ([\d.]+{unit}), not [\d.]+{unit}; latency (0\.\d+), not 0\.35\)\. Alone, size takes"
        )
        with pytest.raises(InfeasibleError, match=message) as refused:
            solve_plan(profile, arrays, [budget, "latency=0.35"], "layer", tables=[table])
        ((size, time),) = re.findall(message, str(refused.value))
        solve_plan(profile, arrays, [size, f"latency={time}"], "layer", tables=[table])


def test_a_table_without_a_cost_that_is_needed_names_it_unless_the_option_is_forbidden(
    make_profile: MakeProfile,
) -> None:
    profile, arrays = make_profile()
    costs = {name: dict(row) for name, row in latency_table(profile).costs.items()}
    del costs[B]["w3"]
    table = CostTable("latency", costs)
    with pytest.raises(InputError, match=rf"table latency has no cost for layer '{B}' w3; every option"):
        solve_plan(profile, arrays, "4b", "layer", tables=[table])
    plan = solve_plan(
        profile, arrays, "4b", "channel", tables=[table], constraints=Constraints(forbid={B: ("w3",)})
    )
    assert "latency" in plan.complexity.costs


@settings(derandomize=True, deadline=None)
@given(unit=units, seed=st.integers(0, 1000), pinned=options, forbidden=options, tenths=st.integers(50, 70))
def test_every_constraint_is_kept_at_every_unit(
    make_profile: MakeProfile, unit: str, seed: int, pinned: str, forbidden: str, tenths: int
) -> None:
    profile, arrays = make_profile(seed=seed, shapes=((8, 30), (12, 50), (5, 20), (6, 40)))
    last = "layers.3.linear"
    constraints = Constraints(
        pin={A: pinned}, forbid={last: (forbidden,)}, options={last: "w2..4"}, tie=((B, C),)
    )
    assume(tenths / 10 > 5.5 or pinned != "w5")
    plan = solve_plan(profile, arrays, f"{tenths / 10}b", unit, constraints=constraints)
    assert plan.constraints == constraints
    assert option_of(plan, A) == pinned
    assert option_of(plan, B) == option_of(plan, C) is not None
    chosen = set(plan.layers[3].strip_options())
    assert chosen <= {"w2", "w3", "w4"} - {forbidden}
    check_rules(plan, option_names)
    certificate = plan.certificate
    assert certificate is not None
    assert plan.predicted_loss == pytest.approx(certificate.objective, rel=1e-9)
    for layer, scored in zip(plan.layers[:3], profile.layers, strict=False):
        (loss,) = (score.loss for score in scored.scores if score.option == layer.option)
        assert layer.predicted_loss == loss


@settings(derandomize=True, deadline=None)
@given(
    seed=st.integers(0, 1000), tenths=st.integers(36, 70), rows=st.sampled_from([(A, B), (A, C), (A, B, C)])
)
def test_constraints_never_make_a_plan_per_layer_better(
    make_profile: MakeProfile, seed: int, tenths: int, rows: tuple[str, ...]
) -> None:
    profile, arrays = make_profile(seed=seed)
    free = solve_plan(profile, arrays, f"{tenths / 10}b", "layer")
    tied = solve_plan(profile, arrays, f"{tenths / 10}b", "layer", constraints=Constraints(tie=(rows,)))
    assert tied.predicted_loss >= free.predicted_loss * (1 - 1e-12)
    assert len({option_of(tied, name) for name in rows}) == 1


def test_a_tie_of_all_layers_is_the_best_uniform_plan(make_profile: MakeProfile) -> None:
    profile, arrays = make_profile()
    for unit in ("layer", "channel"):
        plan = solve_plan(profile, arrays, "4.5b", unit, constraints=Constraints(tie=("*",)))
        uniform = best_uniform_plan(profile, plan)
        assert uniform is not None
        assert plan.layers == uniform.layers


def test_a_pin_to_what_was_chosen_changes_nothing(make_profile: MakeProfile) -> None:
    profile, arrays = make_profile()
    plan = solve_plan(profile, arrays, "4b", "layer")
    pins = {layer.name: layer.option or "" for layer in plan.layers}
    again = solve_plan(profile, arrays, "4b", "layer", constraints=Constraints(pin=pins))
    assert again.layers == plan.layers


def test_an_option_with_one_step_for_the_tensor_can_be_pinned_where_others_are_chosen_per_channel(
    make_profile: MakeProfile,
) -> None:
    profile, arrays = make_profile(options="w2..4,w3t")
    constraints = Constraints(pin={A: "w3t"}, forbid={B: ("w3t",), C: ("w3t",)})
    plan = solve_plan(profile, arrays, "4.5b", "channel", constraints=constraints)
    assert option_of(plan, A) == "w3t"
    with pytest.raises(InputError, match=r"options w3t have one step for the whole tensor"):
        solve_plan(profile, arrays, "4.5b", "channel", constraints=Constraints(pin={A: "w3t"}))


def test_the_uniform_plan_is_uniform_except_where_constraints_say_otherwise(
    make_profile: MakeProfile,
) -> None:
    profile, arrays = make_profile()
    constraints = Constraints(pin={C: "w5"}, forbid={A: ("w3",)})
    plan = solve_plan(profile, arrays, "4.1b", "layer", constraints=constraints)
    uniform = best_uniform_plan(profile, plan)
    assert uniform is not None
    assert uniform.constraints == constraints
    assert option_of(uniform, C) == "w5"
    assert uniform.main_option() == option_of(uniform, B) == "w3"
    # w3 is forbidden, and w4 the next that is larger.
    assert option_of(uniform, A) == "w4"
    check_rules(uniform, option_names)
    assert excesses(uniform) == ()
    size_bits, loss = uniform_options(profile, constraints=constraints)["w3"]
    assert size_bits == uniform.complexity.size_bits - profile.fixed_bits
    assert loss == pytest.approx(uniform.predicted_loss)


def test_the_uniform_plan_keeps_every_budget(make_profile: MakeProfile) -> None:
    profile, arrays = make_profile()
    table = latency_table(profile)
    totals = {
        option: sum(table.costs[layer.name][option] for layer in profile.layers) for option in profile.options
    }
    least = min(totals, key=lambda option: totals[option])
    # Only one uniform option is as fast as this, whatever its size.
    plan = solve_plan(
        profile, arrays, ["16b", f"latency={totals[least] + 1e-6:.6f}"], "layer", tables=[table]
    )
    uniform = best_uniform_plan(profile, plan)
    assert uniform is not None
    assert uniform.main_option() == least
    assert uniform.budgets == plan.budgets


def test_layers_of_an_excluded_name_are_those_the_profile_does_not_have(make_profile: MakeProfile) -> None:
    profile, arrays = make_profile()
    without = profile.model_copy(update={"excluded": ("head",)})
    for constraints in (None, Constraints(exclude=("he*",)), Constraints(exclude=("head",))):
        plan = solve_plan(without, arrays, "4b", "layer", constraints=constraints)
        assert plan.constraints == Constraints(exclude=("head",))
    with pytest.raises(
        InputError, match=rf"the profile has scores of layer '{A}'; .* --exclude 'layers.0\*'"
    ):
        solve_plan(without, arrays, "4b", "layer", constraints=Constraints(exclude=("layers.0*",)))
    with pytest.raises(InputError, match=r"exclude tail: 'tail' matches no layer"):
        solve_plan(without, arrays, "4b", "layer", constraints=Constraints(exclude=("tail",)))


def test_a_plan_with_limits_is_written_and_read_back(make_profile: MakeProfile, tmp_path: Any) -> None:
    profile, arrays = make_profile()
    constraints = Constraints(pin={A: "w4"}, tie=((B, C),))
    plan = solve_plan(
        profile, arrays, ["4.5b", "latency=2.5", "bops=4M"], "tile:2",
        constraints=constraints, tables=[latency_table(profile)],
    )  # fmt: skip
    write_plan(tmp_path / "plan.json", plan)
    assert read_plan(tmp_path / "plan.json") == plan
    assert set(plan.tables or {}) == {"latency", "bops"}


@pytest.mark.parametrize(
    ("budgets", "fields", "reason"),
    [
        (["8b", "2.1b"], {}, r"budget 2\.1b is below what the options w2, w4 can reach"),
        (["8b", "bops=1"], {}, r"budget bops=1 is below .* bops is from"),
        (["16b"], {"pin": {"stem": "w8"}}, r"pin stem=w8: w8 is not among the options w2, w4"),
        (["16b"], {"tie": ("auto",)}, r"tie auto: no two layers read the same input"),
        (["3.5b"], {"pin": {"*": "w4"}}, r"can reach per layer|under the constraints"),
    ],
)
def test_what_cannot_be_met_is_known_before_anything_is_measured(
    image_network: Network, budgets: list[str], fields: dict[str, Any], reason: str
) -> None:
    with pytest.raises((InputError, InfeasibleError), match=reason):
        check_feasible(
            image_network, parse_options("w2,w4"), budgets, "layer", constraints=Constraints(**fields)
        )
    check_feasible(image_network, parse_options("w2,w4"), ["16b", "bops=1G"], "tile:2")


def _prices(plan: Plan) -> dict[str, float]:
    assert plan.certificate is not None
    return plan.certificate.shadow_prices
