"""Presets: what each sets, that the plan says so, and that options beside it hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import apportion
from apportion.cli.choices import MethodChoice
from apportion.quantizer import parse_option
from apportion.reconstruct import PRESETS, PresetName

FEW = ("--samples", "32", "--quiet")
BUDGETS = {PresetName.MULTIPOINT: "5b", PresetName.ALL_LOW_BIT: "3b"}


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_preset_is_carried_out_and_stated(allocate: Any, tmp_path: Path, name: PresetName) -> None:
    preset, budget = PRESETS[name], BUDGETS.get(name, "4.5b")
    few = ("--iterations", "3") if name in ("adaquant", "brecq") else ()
    # The quick look of the automatic method takes iterations of its own.
    few = ("--method", "gptq") if preset.method == "auto" else few
    outcome = allocate("--preset", name, "--budget", budget, *FEW, *few, "--out", tmp_path / "run")
    assert outcome.code == 0, outcome
    plan = apportion.read_plan(tmp_path / "run" / "plan.json")
    assert plan.preset == name
    assert f"preset {name}" in " ".join(outcome.out.split())
    how = plan.reconstruction
    assert how is not None
    assert how.method == ("gptq" if preset.method == "auto" else preset.method)
    assert how.corrections == preset.corrections
    used = {option for layer in plan.layers for option in layer.strip_options()}
    ends = [plan.layers[0].option, plan.layers[-1].option]
    if preset.ends is not None:
        assert ends == [f"w{preset.ends}"] * 2
    else:
        assert used <= {str(option) for option in apportion.parse_options(preset.options)}
        assert plan.constraints is None
    if preset.by_output_error:
        assert not list((tmp_path / "run").glob("profile*"))
    else:
        (path,) = (tmp_path / "run").glob("profile*.json")
        profile = apportion.read_profile(path)[0]
        assert profile.after == (preset.after or MethodChoice(how.method).scores_after(compared=True))
        assert ",".join(profile.options) == ",".join(map(str, apportion.parse_options(preset.options)))


def test_what_is_given_beside_a_preset_holds(allocate: Any, tmp_path: Path) -> None:
    outcome = allocate(
        "--budget", "4.5b", "--preset", "lapq", *FEW, "--method", "gptq", "--after", "gptq",
        "--correct", "batch-norm", "--pin", "stem=w6", "--unit", "channel", "--out", tmp_path / "run",
    )  # fmt: skip
    assert outcome.code == 0, outcome
    plan = apportion.read_plan(tmp_path / "run" / "plan.json")
    assert (plan.preset, plan.unit) == ("lapq", "channel")
    assert plan.reconstruction is not None
    assert (plan.reconstruction.method, plan.reconstruction.corrections) == ("gptq", ("batch-norm",))
    assert [plan.layers[0].option, plan.layers[-1].option] == ["w6", "w8"]
    assert apportion.read_profile(tmp_path / "run" / "profile-gptq.json")[0].after == "gptq"


def test_what_the_first_and_the_last_layer_read_is_an_exception_too(allocate: Any, tmp_path: Path) -> None:
    outcome = allocate(
        "--budget", "4b", "--budget", "bops=9M", "--preset", "lapq", "--options", "w3..8a4,w8a8", *FEW,
        "--method", "nearest", "--out", tmp_path / "run",
    )  # fmt: skip
    assert outcome.code == 0, outcome
    plan = apportion.read_plan(tmp_path / "run" / "plan.json")
    first, last = plan.layers[0].name, plan.layers[-1].name
    assert plan.constraints is not None
    assert plan.constraints.pin == {first: "w8a8", last: "w8a8"}
    entering = {layer: value.option for value in plan.activations for layer in value.readers}
    assert (entering[first], entering[last]) == ("a8", "a8")
    assert "a4" in entering.values()


def test_multipoint_adds_points_where_outputs_are_off_and_can_be_used_on(
    allocate: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    # The unit is the preset's own.
    asked = ("--budget", "4.6b", "--preset", "multipoint", "--unit", "channel")
    assert allocate(*asked, *FEW, "--out", run).code == 0
    plan = apportion.read_plan(run / "plan.json")
    assert plan.complexity.average_bits <= 4.6
    middle = [parse_option(text) for layer in plan.layers[1:-1] for text in layer.strip_options()]
    assert {option.bits for option in middle} == {4}
    assert {option.points for option in middle} >= {1, 2}
    assert plan.quantizer["fit"] == "greedy"
    shown = " ".join(allocate("show", run).out.split())
    assert "the points were chosen by output errors" in shown
    assert allocate("evaluate", run).code == 0
    again = allocate("finalize", "--force", "--method", "nearest", *FEW, "--json", "--out", run)
    assert again.code == 0, again
    assert again.json["plan"]["measured"] == plan.model_dump(exclude_none=True)["measured"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--preset", "brecq"), "say how much may be spent"),
        (("--preset", "brecq", "--lossless"), "goes with a --budget"),
        (("--preset", "guess", "--budget", "4b"), "--preset"),
        (("--preset", "multipoint", "--budget", "5b", "--budget", "macs=9M"), "one budget of the size"),
        (("--preset", "multipoint", "--budget", "5b", "--tie", "auto"), "one budget of the size"),
        (("--preset", "multipoint", "--budget", "5b", "--refine", "2"), "one budget of the size"),
        (("--preset", "multipoint", "--budget", "5b", "--options", "w2..8"), "such as w4x1..4"),
        (("--preset", "multipoint", "--budget", "5b", "--options", "w4x1..4a8"), "--options w4x1..4a8 names"),
        (
            (
                "--preset",
                "multipoint",
                "--budget",
                "5b",
                "--unit",
                "layer",
                "--rounding",
                "floor",
                "--objective",
                "joint",
            ),
            "leave out --unit, --rounding, --objective",
        ),
        (("--preset", "multipoint", "--budget", "5b", "--scores", "exact"), "leave out --scores"),
        (("--preset", "multipoint", "--budget", "5b", "--time-limit", "5"), "leave out --time-limit"),
        (("--preset", "multipoint", "--budget", "3b"), "the budget 3b allows"),
        (("--preset", "brecq", "--budget", "4b", "--options", "w2..4"), "add it to --options"),
        (
            ("--preset", "lapq", "--budget", "4b", "--options", "w2..8a4"),
            "add them to --options, such as w4a8",
        ),
    ],
)
def test_what_a_preset_cannot_do_is_refused(
    refused: Any, tmp_path: Path, arguments: tuple[str, ...], reason: str
) -> None:
    assert reason in refused(*arguments, "--samples", "16", "--out", tmp_path / "run")
