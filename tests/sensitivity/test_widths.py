"""Weights and values chosen together, against trying every combination."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator

import pytest

from apportion.allocator import Constraints, CostTable, LiveStep, Plan, excesses
from apportion.errors import InfeasibleError, InputError
from apportion.network import Data, Network
from apportion.quantizer import parse_activation, parse_option, parse_option_set
from apportion.reconstruct import accept_edits
from apportion.sensitivity import (
    ActivationSettings,
    Profile,
    best_uniform_plan,
    certifies_activations,
    measure_profile,
    solve_plan,
    task_of,
    uniform_plans,
)
from apportion.sensitivity.activation_profile import ActivationProfile, SiteProfile, SiteScore

# Two layers read y; z is read by one of them too, in a second use, so that all of these are one unit.
READERS = {"x": {0: 1.0}, "y": {1: 0.5, 2: 1.0}, "z": {1: 0.5}}
WIDTHS = ("a2", "a4", "a8")


def with_sites(profile: Profile) -> Profile:
    """The profile with three values, whose losses fall, and what is alive."""
    sites = []
    for place, (name, readers) in enumerate(READERS.items()):
        layers = {
            profile.layers[row].name: int(share * profile.layers[row].macs) for row, share in readers.items()
        }
        scores = tuple(
            SiteScore(
                option=option, loss=0.02 * (place + 1) * 2.0 ** -parse_activation(option).bits,
                standard_error=1e-4, step=0.1, zero_point=0,
            )
            for option in WIDTHS
        )  # fmt: skip
        sites.append(
            SiteProfile(
                name=name,
                readers=layers,
                elements=100 * (place + 1),
                nonnegative=True,
                massive=False,
                scores=scores,
            )
        )
    live = (
        LiveStep(operation="first", floats=10, values=("x", "y")),
        LiveStep(operation="second", floats=0, values=("y", "z")),
    )
    found = ActivationProfile(
        method="fisher", options=WIDTHS, settings={"search": "mse"}, sites=tuple(sites), live=live
    )
    return profile.model_copy(update={"activations": found})


@pytest.fixture(scope="module")
def profile(make_profile: object) -> Profile:
    return with_sites(make_profile(options="w2,w3,w5", seed=4)[0])  # type: ignore[operator]


def everything(profile: Profile, allowed: dict[str, tuple[str, ...]]) -> Iterator[dict[str, float]]:
    """Loss and costs of every combination, counted one by one from the documents."""
    found = profile.activations
    assert found is not None
    sites = [allowed.get(site.name, WIDTHS) for site in found.sites]
    layers = [allowed.get(layer.name, profile.options) for layer in profile.layers]
    for widths in itertools.product(*sites):
        bits = {
            site.name: parse_activation(width).bits for site, width in zip(found.sites, widths, strict=True)
        }
        sizes = {site.name: site.elements for site in found.sites}
        memory = max(
            32 * step.floats + sum(sizes[name] * bits[name] for name in step.values) for step in found.live
        )
        for options in itertools.product(*layers):
            total = {"size": 0.0, "bops": 0.0, "act_memory": memory / 8, "table": 0.0, "pairs": 0.0}
            loss = sum(site.loss(width) for site, width in zip(found.sites, widths, strict=True))
            for layer, text in zip(profile.layers, options, strict=True):
                option = parse_option(text)
                (score,) = [score for score in layer.scores if score.option == text]
                loss += score.loss
                total["size"] += score.size_bits
                total["table"] += option.bits**2
                widest = max(bits[site.name] for site in found.sites if layer.name in site.readers)
                total["pairs"] += option.bits + 0.5 * widest**2
                for site in found.sites:
                    macs = site.readers.get(layer.name, 0)
                    total["bops"] += macs * option.bits * option.points * bits[site.name]
            yield total | {"loss": loss}


def best(profile: Profile, limits: dict[str, float], allowed: dict[str, tuple[str, ...]]) -> float:
    return min(
        each["loss"]
        for each in everything(profile, allowed)
        if all(each[name] <= limit for name, limit in limits.items())
    )


def squares(profile: Profile) -> CostTable:
    return CostTable(
        "table",
        {
            layer.name: {text: float(parse_option(text).bits ** 2) for text in profile.options}
            for layer in profile.layers
        },
    )


def pairs(profile: Profile) -> CostTable:
    """Costs by weights and activations; for a8, by weights alone."""
    return CostTable(
        "pairs",
        {
            layer.name: {
                f"{text}{width if width != 'a8' else ''}": parse_option(text).bits
                + 0.5 * parse_activation(width).bits ** 2
                for text in profile.options
                for width in WIDTHS
            }
            for layer in profile.layers
        },
    )


@pytest.mark.parametrize(
    "limits",
    [
        {"pairs": 36.0},
        {"pairs": 60.0, "bops": 9000.0},
        {"bops": 8000.0},
        {"bops": 4500.0},
        {"act_memory": 200.0},
        {"act_memory": 10_000.0},
        {"size": 2000.0, "bops": 9000.0},
        {"act_memory": 260.0, "bops": 6000.0, "size": 2000.0},
        {"act_memory": 300.0, "table": 40.0},
    ],
)
@pytest.mark.parametrize("rules", [{}, {"pin": {"layers.1.linear": "w3a2"}}])
def test_the_choice_is_the_best_of_all(
    profile: Profile, limits: dict[str, float], rules: dict[str, object]
) -> None:
    allowed = {} if not rules else {"layers.1.linear": ("w3",), "y": ("a2",), "z": ("a2",)}
    texts = [
        f"{limits[name] / 8:.0f}B" if name == "size" else f"{name}={limits[name]:.0f}"
        + ("B" if name == "act_memory" else "") for name in limits
    ]  # fmt: skip
    # Of a file, what is stored unquantized is a part.
    inside = {name: limit - profile.fixed_bits if name == "size" else limit for name, limit in limits.items()}
    plan = solve_plan(
        profile,
        None,
        texts,
        "layer",
        constraints=Constraints.model_validate(rules),
        tables=[squares(profile), pairs(profile)],
    )
    expected = best(profile, inside, allowed)
    assert plan.predicted_loss == pytest.approx(expected, rel=1e-9)
    assert plan.certificate is not None
    assert plan.certificate.objective == pytest.approx(expected, rel=1e-9)
    assert plan.certificate.status == "proven optimal"
    assert certifies_activations(plan)
    assert not excesses(plan)
    for name in ("table", "pairs"):
        assert name in limits or plan.complexity.costs[name] > 0


def test_a_layer_that_reads_two_options_of_equal_bits_costs_what_the_solver_counted(profile: Profile) -> None:
    found = profile.activations
    assert found is not None
    # Of the values that one layer reads in turn, the first loses least with a4d, the second with a4.
    losses = {"x": (1.0, 0.5), "y": (1.0, 0.5), "z": (0.5, 1.0)}
    sites = [
        site.model_copy(
            update={
                "scores": tuple(
                    score.model_copy(update={"option": option, "loss": loss})
                    for score, option, loss in zip(
                        site.scores, ("a4", "a4d"), losses[site.name], strict=False
                    )
                )
            }
        )
        for site in found.sites
    ]
    update = {"options": ("a4", "a4d"), "sites": tuple(sites)}
    profile = profile.model_copy(update={"activations": found.model_copy(update=update)})
    for cheap in ("a4", "a4d"):
        costs = {
            f"{text}{width}": 5.0 - 4 * (width == cheap)
            for text in profile.options
            for width in ("a4", "a4d")
        }
        table = CostTable("pairs", {layer.name: costs for layer in profile.layers})
        for limit in (3, 7, 11, 15):
            plan = solve_plan(profile, None, f"pairs={limit}", "layer", tables=[table])
            assert not excesses(plan)


def test_values_take_the_least_loss_where_no_budget_counts_them(profile: Profile) -> None:
    plan = solve_plan(profile, None, "3.5b", "layer")
    assert [value.option for value in plan.activations] == ["a8"] * 3
    assert not certifies_activations(plan)
    alone = solve_plan(profile.model_copy(update={"activations": None}), None, "3.5b", "layer")
    assert [layer.option for layer in plan.layers] == [layer.option for layer in alone.layers]
    loss = sum(value.chosen.predicted_loss for value in plan.activations)
    assert plan.predicted_loss == pytest.approx(alone.predicted_loss + loss)


def test_channels_are_chosen_at_the_widths_of_whole_layers(make_profile: object) -> None:
    bare, arrays = make_profile(options="w2,w3,w5", seed=4)  # type: ignore[operator]
    profile = with_sites(bare)
    budgets = ("act_memory=260B", "bops=8000", "4b")
    layer, channel = (solve_plan(profile, arrays, budgets, unit) for unit in ("layer", "channel"))
    assert [value.option for value in layer.activations] == [value.option for value in channel.activations]
    assert channel.complexity.costs["bops"] <= 8000
    assert not excesses(channel)
    assert not certifies_activations(channel)
    again = task_of(profile, arrays, channel)
    assert again.plan_of(again.choice_of(channel)).complexity == channel.complexity


@pytest.mark.parametrize("unit", ["layer", "channel"])
def test_an_embedding_takes_no_bit_operations(token_network: Network, token_data: Data, unit: str) -> None:
    options = parse_option_set("w3..5a4..6")
    profile, arrays = measure_profile(
        token_network, token_data, options.weights, activations=ActivationSettings(options.activations)
    )
    plan = solve_plan(profile, arrays, ["bops=10k", "6b"], unit)
    assert plan.tables is not None
    assert set(plan.tables["bops"]["table"].values()) == {0.0}
    assert min(plan.tables["bops"]["mix"].values()) > 0
    lower = plan.activations[0].model_copy(update={"option": "a4"})
    raised = plan.model_copy(update={"activations": (lower, *plan.activations[1:]), "assignment": "edited"})
    accepted = accept_edits(raised)
    assert accepted.tables is not None
    assert accepted.tables["bops"]["table"] == plan.tables["bops"]["table"]
    assert accepted.certificate is None


def with_first(plan: Plan, choice: dict[str, float] | None = None, **update: object) -> Plan:
    """The plan with another entry for its first value, or for what is chosen for it."""
    first, *rest = plan.activations
    chosen = first.chosen.model_copy(update=choice or {})
    first = first.model_copy(update={"choices": first.choices | {first.option: chosen}} | update)
    return plan.model_copy(update={"activations": (first, *rest)})


@pytest.mark.parametrize(
    "edit",
    [
        lambda plan: with_first(plan, {"step": 0.2}),
        lambda plan: with_first(plan, {"zero_point": 1}),
        lambda plan: with_first(plan, {"predicted_loss": 0.0}),
        lambda plan: with_first(plan, elements=99),
        lambda plan: with_first(plan, readers=dict.fromkeys(plan.activations[0].readers, 1)),
        lambda plan: plan.model_copy(update={"live": plan.live[1:]}),
    ],
)
def test_a_proof_ends_with_what_the_values_were(profile: Profile, edit: Callable[[Plan], Plan]) -> None:
    plan = solve_plan(profile, None, ["act_memory=10KB"], "layer")
    assert plan.certificate is not None
    assert accept_edits(plan) is plan
    accepted = accept_edits(edit(plan))
    assert accepted.certificate is accepted.predicted_loss is None


@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        ({"pin": {"layers.0.linear": "w3a8"}}, "a8"),
        ({"pin": {"layers.0.linear": "w3a2..4"}}, "a2 a4"),
        ({"forbid": {"layers.0.*": ["w2", "a4", "a8"]}}, "a2"),
        ({"options": {"*": "w2..5a4..8"}}, "a4 a8"),
        ({"forbid": {"layers.1.*": ["a2", "a4"]}}, "a2 a4 a8"),
    ],
)
def test_an_edited_plan_keeps_the_rules_about_what_its_layers_read(
    profile: Profile, rules: dict[str, object], kept: str
) -> None:
    plan = solve_plan(profile, None, "5b", "layer")
    constraints = Constraints.model_validate(rules)
    layers = tuple(
        layer.model_copy(update={"option": "w3"}) if layer.name == "layers.0.linear" else layer
        for layer in plan.layers
    )
    for option in WIDTHS:
        edited = with_first(plan, option=option).model_copy(
            update={"constraints": constraints, "layers": layers}
        )
        if option in kept.split():
            assert accept_edits(edited).activations == edited.activations
        else:
            with pytest.raises(
                InputError, match=f"'x', read by layers.0.linear, has option {option}, against"
            ):
                accept_edits(edited)


def test_an_option_of_a_value_has_the_bits_of_its_name(profile: Profile) -> None:
    plan = solve_plan(profile, None, ["4b"], "layer")
    with pytest.raises(InputError, match=r"value 'x' has 2 bits under option a8; .* here 8"):
        accept_edits(with_first(plan, {"bits": 2}))
    with pytest.raises(InputError, match=r"value 'x', option a8: it has a step and a zero point"):
        accept_edits(with_first(plan, {"step": None, "zero_point": None}))


def test_an_edit_over_a_budget_is_told_in_the_budgets_own_unit(profile: Profile) -> None:
    plan = solve_plan(profile, None, ["act_memory=0.25KiB", "bops=8k"], "layer")
    wide = [value.model_copy(update={"option": "a8"}) for value in plan.activations]
    for budget, message in (
        ("act_memory=0.25KiB", r"has act_memory 0\.488282KiB, 0\.238282KiB more"),
        ("bops=8k", r"has bops [\d.]+k, [\d.]+k more"),
    ):
        edited = plan.model_copy(update={"activations": tuple(wide), "budgets": (budget,)})
        with pytest.raises(InputError, match=rf"{message} than its budget {budget} allows"):
            accept_edits(edited)


def test_uniform_plans_have_every_pair_of_options(profile: Profile) -> None:
    plans = uniform_plans(profile)
    assert set(plans) == {f"{w}{a}" for w in profile.options for a in WIDTHS}
    assert {value.option for value in plans["w3a4"].activations} == {"a4"}
    assert plans["w3a4"].main_option() == "w3a4"
    plan = solve_plan(profile, None, ["bops=8000"], "layer")
    uniform = best_uniform_plan(profile, plan)
    assert isinstance(uniform, Plan)
    assert uniform.complexity.costs["bops"] <= 8000
    assert uniform.predicted_loss >= plan.predicted_loss


def test_what_cannot_be_reached_says_how_far_options_go(profile: Profile) -> None:
    with pytest.raises(InfeasibleError, match=r"budget bops=10 is below .* bops is from 1920 to"):
        solve_plan(profile, None, "bops=10", "layer")
    with pytest.raises(
        InfeasibleError, match=r"budget act_memory=20B is below .* from 0\.1\d+KiB to .*attention"
    ) as low:
        solve_plan(profile, None, "act_memory=20B", "layer")
    with pytest.raises(InfeasibleError, match=r"size is from [\d.]+MB to") as small:
        solve_plan(profile, None, ["0.0001MB", "bops=8000"], "layer")
    for refused, form in ((low, r"from ([\d.]+KiB) to"), (small, r"from ([\d.]+MB) to")):
        (least,) = re.findall(form, str(refused.value))
        solve_plan(profile, None, f"act_memory={least}" if refused is low else [least, "bops=8000"], "layer")
    bare = profile.model_copy(update={"activations": None})
    with pytest.raises(InputError, match="limits what activations take, and they stay float"):
        solve_plan(bare, None, "act_memory=20KiB", "layer")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            {"pin": {"layers.0.linear": "w3a5"}},
            "pin layers.0.linear=w3a5 names the activations a5, not among",
        ),
        ({"forbid": {"*": ["a2", "a4", "a8"]}}, "value 'x', read by layers.0.linear, has no option left"),
        ({"forbid": {"*": ["w2a4"]}}, "forbids? .*=w2a4 names weights and activations together"),
    ],
)
def test_rules_about_activations_that_cannot_be_are_refused(
    profile: Profile, rules: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        solve_plan(profile, None, "4b", "layer", constraints=Constraints.model_validate(rules))


def test_rules_about_activations_that_stay_float_are_refused(profile: Profile) -> None:
    bare = profile.model_copy(update={"activations": None})
    rules = Constraints(pin={"layers.0.linear": "w3a4"})
    with pytest.raises(InputError, match="names the activations a4, while activations stay float"):
        solve_plan(bare, None, "4b", "layer", constraints=rules)
