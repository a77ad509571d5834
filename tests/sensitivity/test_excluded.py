"""What layers that stay float take of budgets of work: their part is in every total, whatever is chosen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from apportion.allocator import AmountForm, CostTable, Plan, excesses, read_table
from apportion.errors import InfeasibleError, InputError
from apportion.network import Data, Network
from apportion.quantizer import parse_option_set
from apportion.reconstruct import accept_edits
from apportion.sensitivity import (
    ActivationSettings,
    Profile,
    check_feasible,
    measure_profile,
    read_profile,
    solve_plan,
    uniform_plans,
    write_profile,
)

OPTIONS = parse_option_set("w2a4..6,w4a4..6")
ACTIVATIONS = ActivationSettings(OPTIONS.activations)


@pytest.fixture(scope="module")
def network(image_network: Network) -> Network:
    """The images' network, of which a layer stays float."""
    return image_network.without([image_network.layers[1].name], "excluded")


@pytest.fixture(scope="module")
def weights_profile(network: Network, image_data: Data) -> Profile:
    return measure_profile(network, image_data, OPTIONS.weights)[0]


@pytest.fixture(scope="module")
def full_profile(network: Network, image_data: Data) -> Profile:
    return measure_profile(network, image_data, OPTIONS.weights, activations=ACTIVATIONS)[0]


def float_macs(network: Network) -> int:
    return sum(layer.macs for layer in network.left_out)


def work(network: Network, bits: int) -> int:
    """Bit operations where every quantized layer multiplies so many bits, weights times values."""
    return 32 * 32 * float_macs(network) + bits * sum(layer.macs for layer in network.layers)


def test_excluding_a_layer_changes_no_multiply_accumulates(
    image_network: Network, network: Network, weights_profile: Profile
) -> None:
    macs = sum(layer.macs for layer in image_network.layers)
    assert float_macs(network) > 0
    plan = solve_plan(weights_profile, None, [f"macs={macs}"], "layer")
    assert plan.complexity.costs == {"macs": macs}
    with pytest.raises(InfeasibleError, match=rf"macs is from {macs} to {macs}"):
        solve_plan(weights_profile, None, [f"macs={macs - 1}"], "layer")


def test_a_float_layer_takes_32_bits_of_weights_and_of_values(
    network: Network, weights_profile: Profile, full_profile: Profile
) -> None:
    uniform = uniform_plans(weights_profile, budgets=("bops=1G",))["w4"]
    assert uniform.complexity.costs["bops"] == work(network, 4 * 32)
    both = uniform_plans(full_profile, budgets=("bops=1G",))["w4a6"]
    assert both.complexity.costs["bops"] == work(network, 4 * 6)


@pytest.mark.parametrize("values", [False, True])
def test_budgets_of_work_can_be_met_down_to_the_least_that_is_named(
    network: Network, weights_profile: Profile, full_profile: Profile, values: bool
) -> None:
    profile, settings = (full_profile, ACTIVATIONS) if values else (weights_profile, None)
    least = work(network, 2 * (4 if values else 32))
    plan = solve_plan(profile, None, [f"bops={least}"], "layer")
    assert plan.complexity.costs["bops"] == least
    assert not excesses(plan)
    check_feasible(network, OPTIONS.weights, f"bops={least}", "layer", activations=settings)
    named = rf"bops is from {AmountForm().text(least)} to "
    for budgets in ([f"bops={least - 1}"], [f"bops={least - 1}", "16b"]):
        with pytest.raises(InfeasibleError, match=named):
            solve_plan(profile, None, budgets, "layer")
        with pytest.raises(InfeasibleError, match=named):
            check_feasible(network, OPTIONS.weights, budgets, "layer", activations=settings)


def raised(plan: Plan) -> Plan:
    """The plan after a person's edit: all layers at 4 bits."""
    layers = [layer.model_copy(update={"option": "w4"}) for layer in plan.layers]
    return plan.model_copy(update={"layers": tuple(layers)})


@pytest.mark.parametrize("values", [False, True])
def test_edited_plans_keep_the_float_layers_part(
    network: Network, weights_profile: Profile, full_profile: Profile, values: bool
) -> None:
    profile = full_profile if values else weights_profile
    widths = {value.name: value.option for value in solve_plan(profile, None, "8b", "layer").activations}
    assert set(widths.values()) <= {"a6"}
    total = work(network, 4 * (6 if values else 32))
    plan = uniform_plans(profile, budgets=(f"bops={total}",))["w2a6" if values else "w2"]
    assert accept_edits(raised(plan)).complexity.costs["bops"] == total
    tight = plan.model_copy(update={"budgets": (f"bops={total - 1}",)})
    with pytest.raises(InputError, match=rf"1 more than its budget bops={total - 1} allows"):
        accept_edits(raised(tight))


def test_a_table_may_state_what_a_float_layer_costs(
    network: Network, weights_profile: Profile, full_profile: Profile, tmp_path: Path
) -> None:
    (out,) = network.excluded
    rows = [f"{layer.name},{option},1" for layer in network.layers for option in ("w2", "w4", "float")]
    (tmp_path / "latency.csv").write_text("\n".join(["layer,option,cost", f"{out},float,2.5", *rows]))
    table = read_table("latency", tmp_path / "latency.csv")
    total = 2.5 + len(network.layers)
    for profile in (weights_profile, full_profile):
        plan = solve_plan(profile, None, [f"latency={total}"], "layer", tables=[table])
        assert plan.complexity.costs["latency"] == total
        with pytest.raises(InfeasibleError, match=rf"latency is from {total} to {total}"):
            solve_plan(profile, None, [f"latency={total - 0.01}"], "layer", tables=[table])


def test_pairs_of_weights_and_activations_leave_the_float_layers_part(
    network: Network, full_profile: Profile
) -> None:
    (out,) = network.excluded
    costs = {layer.name: {"w2": 2.0, "w4": 3.0, "w2a4": 1.0} for layer in network.layers}
    table = CostTable("latency", {**costs, out: {"float": 2.5}})
    least = 2.5 + len(network.layers)
    plan = solve_plan(full_profile, None, [f"latency={least}"], "layer", tables=[table])
    assert plan.complexity.costs["latency"] == least
    check = {"tables": [table], "activations": ACTIVATIONS}
    check_feasible(network, OPTIONS.weights, f"latency={least}", "layer", **check)  # type: ignore[arg-type]
    with pytest.raises(InfeasibleError, match=rf"latency is from {least} to "):
        check_feasible(network, OPTIONS.weights, f"latency={least - 0.5}", "layer", **check)  # type: ignore[arg-type]


def test_a_profile_says_what_its_excluded_layers_take(weights_profile: Profile, tmp_path: Path) -> None:
    write_profile(tmp_path / "profile.json", weights_profile.model_copy(update={"method": "exact"}), None)
    text = (tmp_path / "profile.json").read_text()
    assert read_profile(tmp_path / "profile.json")[0].excluded_macs == weights_profile.excluded_macs
    (tmp_path / "profile.json").write_text(re.sub(r'"excluded_macs": \{[^}]*\}', '"excluded_macs": {}', text))
    with pytest.raises(InputError, match=r"excluded_macs does not have the layers that excluded names"):
        read_profile(tmp_path / "profile.json")
