"""Presets: what each sets, that the plan says so, and that options beside it hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import apportion
from apportion.allocator import Constraints
from apportion.cli.bundle import with_ends
from apportion.cli.choices import MethodChoice
from apportion.cli.limits import Limits
from apportion.cli.scoring import Scoring
from apportion.errors import InputError
from apportion.network import capture
from apportion.quantizer import Option, Quantizer, parse_activation, parse_option
from apportion.reconstruct import PRESETS, PresetName
from apportion.sensitivity import ActivationSettings, FisherSettings, check_feasible

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


def test_the_first_and_the_last_layer_have_their_bits_beside_any_options(
    allocate: Any, tmp_path: Path
) -> None:
    for options, values in (("w2..4", False), ("w2..4a4", True)):
        run = tmp_path / options
        outcome = allocate(
            "--preset",
            "lapq",
            "--options",
            options,
            "--budget",
            "7b",
            "--method",
            "nearest",
            *FEW,
            "--out",
            run,
        )
        assert outcome.code == 0, outcome
        plan = apportion.read_plan(run / "plan.json")
        first, *middle, last = plan.layers
        assert (first.option, last.option) == ("w8", "w8")
        # A budget of 7 bits would buy more.
        assert {layer.option for layer in middle} == {"w4"}
        entering = {layer: value.option for value in plan.activations for layer in value.readers}
        assert {entering.get(end.name) for end in (first, last)} == ({"a8"} if values else {None})
        assert {entering[layer.name] for layer in middle if values} <= {"a4"}


class Shared(nn.Module):
    """Two layers read the input, two values are multiplied with each other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.beside, self.middle, self.last = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        first, beside = self.first(x), self.beside(x)
        attended: Tensor = (first.unsqueeze(2) @ beside.unsqueeze(1)).mean(2)
        return self.last(self.middle(attended))  # type: ignore[no-any-return]


@pytest.mark.parametrize("attention", [False, True])
def test_what_is_added_for_the_ends_reaches_no_value_but_theirs(attention: bool) -> None:
    network = capture(Shared(), torch.randn(3, 6))
    scoring = Scoring(
        (Option(4),), Quantizer(), "fisher", FisherSettings(), "nearest",
        activations=ActivationSettings((parse_activation("a4"),), attention=attention),
    )  # fmt: skip
    limits, found = with_ends(PresetName.LAPQ, Limits(("9b",), Constraints(), ()), network, scoring)
    assert found.activations is not None
    assert [str(option) for option in found.options] == ["w4", "w8"]
    assert limits.constraints.pin == dict.fromkeys(("first", "last"), "w8a8")
    # Without a rule that reaches them, products are not given the option, and the pin is refused.
    widths = ["a4"] if attention else ["a4", "a8"]
    assert [str(option) for option in found.activations.options] == widths
    middle = ("w8",) if attention else ("w8", "a8")
    assert limits.constraints.forbid == {"beside": ("w8",), "middle": middle}
    given = (network, found.options, limits.budgets, "layer")
    settings = {"constraints": limits.constraints, "activations": found.activations}
    if attention:
        with pytest.raises(InputError, match=r"names the activations a8, not among a4"):
            check_feasible(*given, **settings)  # type: ignore[arg-type]
    else:
        check_feasible(*given, **settings)  # type: ignore[arg-type]


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
        (
            ("--preset", "brecq", "--budget", "9b", "--options", "w2..4", "--pin", "strided_block.conv1=w8"),
            "w2, w3, w4, w8 after pin strided_block.conv1=w8; forbid strided_block.conv1=w8; change",
        ),
    ],
)
def test_what_a_preset_cannot_do_is_refused(
    refused: Any, tmp_path: Path, arguments: tuple[str, ...], reason: str
) -> None:
    assert reason in refused(*arguments, "--samples", "16", "--out", tmp_path / "run")
