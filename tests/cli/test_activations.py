"""Activations in low bits from the command line: scored, limited, edited, loaded and judged again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import apportion
from apportion.allocator import read_plan
from apportion.demo import digits_data
from apportion.export import read_packed

ARGUMENTS = ["--samples", "64", "--options", "w3..5a4,w4a6,w4a8", "--method", "gptq", "--unit", "layer"]

LINEAR = """
import torch
from torch import nn


def net():
    torch.manual_seed(0)
    return nn.Linear(20_000, 4)
"""

Allocate = Callable[..., Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, allocate: Allocate) -> Path:
    folder = tmp_path_factory.mktemp("activations") / "run"
    budgets = ["--budget", "bops=9M", "--budget", "4.5b", "--budget", "act_memory=2KiB"]
    outcome = allocate(*budgets, *ARGUMENTS, "--pin", "stem=w5a8", "--out", folder, "--quiet")
    assert outcome.code == 0, outcome
    return folder


def test_a_plan_keeps_budgets_and_rules_of_weights_and_activations(run: Path) -> None:
    plan = read_plan(run / "plan.json")
    assert plan.complexity.costs["bops"] <= 9e6
    assert plan.complexity.costs["act_memory"] <= 2048
    assert plan.complexity.average_bits <= 4.5
    assert plan.layers[0].option == "w5"
    assert plan.activations[0].option == "a8"
    assert len({value.option for value in plan.activations}) > 1
    assert plan.guard is not None
    assert "a" in plan.guard.option


def test_predictions_in_the_chart_count_activations_everywhere(run: Path, plotted: Any) -> None:
    plan, data = read_plan(run / "plan.json"), plotted(run)
    assert plan.guard is not None
    assert data.plan.predicted == pytest.approx(plan.predicted_loss)
    weight_bits = plan.complexity.size_bits - plan.complexity.fixed_bits
    bound = np.interp((weight_bits + data.fixed_bits) / 8, data.bound_size, data.bound_loss)
    assert bound <= data.plan.predicted
    (rival,) = (point for point in data.uniform if point.label == plan.guard.option)
    assert rival.measured == plan.guard.uniform_loss
    for point in data.uniform:
        size = (point.weight_bits + data.fixed_bits) / 8
        # Beyond the last vertex more bits buy nothing.
        assert point.predicted >= np.interp(size, data.bound_size, data.bound_loss)
    assert {"w3a4", plan.guard.option} <= {point.label for point in data.uniform}
    assert "w5a8" not in {point.label for point in data.uniform}
    assert data.held == "the plan's activations"


def test_a_loaded_network_is_the_one_that_was_measured(run: Path, allocate: Allocate) -> None:
    plan = read_plan(run / "plan.json")
    measured = allocate("evaluate", run, "--json").json
    assert measured["loss"] == pytest.approx(plan.measured.loss, rel=1e-6)  # type: ignore[union-attr]
    held_out = digits_data()[1]
    network = apportion.load(run)
    with torch.inference_mode():
        right = (network(held_out.inputs).argmax(-1) == held_out.labels).float().mean()
    assert float(right) == pytest.approx(plan.measured.accuracy)  # type: ignore[union-attr]


def test_an_edited_width_is_counted_again(run: Path, tmp_path: Path, allocate: Allocate) -> None:
    document = json.loads((run / "plan.json").read_text())
    before = document["complexity"]["costs"]
    value = next(each for each in document["activations"] if each["option"] != "a4")
    value["option"] = "a4"
    edited = tmp_path / "plan.json"
    edited.write_text(json.dumps(document))
    out = tmp_path / "out"
    common = ["finalize", "--samples", "64", "--method", "nearest", "--out", str(out), "--plan", str(edited)]
    # The rule for the first layer forbids it for what that layer reads.
    if value["name"] == document["activations"][0]["name"]:
        del document["constraints"]["pin"]
        edited.write_text(json.dumps(document))
    outcome = allocate(*common)
    assert outcome.code == 0, outcome
    assert "edited by hand" in outcome.err
    # What was scored may be another grid than the edit's.
    text = " ".join(allocate("show", out).out.split())
    assert "values in low bits" in text
    assert "are predicted to lose" not in text
    plan = read_plan(out / "plan.json")
    assert plan.certificate is None
    assert plan.complexity.costs["bops"] < before["bops"]
    for each in document["activations"]:
        each["option"] = "a8"
    edited.write_text(json.dumps(document))
    outcome = allocate(*common, "--force")
    assert outcome.code == 2
    assert "more than its budget" in " ".join(outcome.err.split())


def test_a_method_begins_at_the_calibrated_steps_whatever_was_tried_before(
    run: Path, tmp_path: Path, allocate: Allocate
) -> None:
    out = tmp_path / "out"
    given = read_plan(run / "plan.json").activations
    common = ("finalize", "--samples", "16", "--plan", run / "plan.json", "--out", out, "--method", "lapq")
    assert allocate(*common).code == 0
    assert read_plan(out / "plan.json").activations == given
    # What was found runs, and is stored where it runs.
    found = read_packed(out / "weights.safetensors").plan.activations
    assert [value.option for value in found] == [value.option for value in given]
    assert found != given
    measured = allocate("evaluate", out, "--json").json
    assert measured["loss"] == pytest.approx(read_plan(out / "plan.json").measured.loss, rel=1e-6)  # type: ignore[union-attr]
    document = json.loads((out / "plan.json").read_text())
    value = document["activations"][0]
    value["choices"][value["option"]]["step"] *= 1.01
    (out / "plan.json").write_text(json.dumps(document))
    outcome = allocate("evaluate", out)
    assert outcome.code == 2
    assert "was computed for another plan" in " ".join(outcome.err.split())


def test_a_profile_shows_every_value_and_its_readers(tmp_path: Path, allocate: Allocate) -> None:
    arguments = ("--samples", 16, "--options", "w4a4,w4a8", "--ranges", "minmax", "--out", tmp_path / "run")
    outcome = allocate("profile", *arguments, "--attention")
    assert outcome.code == 0, outcome
    assert "warning: --attention adds nothing: this network" in outcome.err
    text = " ".join(outcome.out.split())
    assert "when one value is stored in low bits, fisher" in text
    for word in ("inputs_0", "mean", "classifier", "a4", "a8"):
        assert word in text


@pytest.mark.parametrize(
    ("options", "others", "named", "advised"),
    [("w8a4,w8a8", 1, True, True), ("w8a4,w8a8d", 1, True, False), ("w8a8", 0, False, False)],
)
def test_a_massive_value_is_named_and_what_would_hold_it(
    tmp_path: Path, allocate: Allocate, options: str, others: int, named: bool, advised: bool
) -> None:
    (tmp_path / "net.py").write_text(LINEAR)
    inputs = others * np.random.default_rng(0).standard_normal((32, 20_000)).astype(np.float32)
    inputs[:, 7] = 1000
    np.savez(tmp_path / "data.npz", inputs=inputs)
    model = ("--model", f"{tmp_path / 'net.py'}:net", "--data", tmp_path / "data.npz")
    outcome = allocate("profile", *model, "--options", options, "--out", tmp_path / "run")
    assert outcome.code == 0, outcome
    said = " ".join(outcome.err.split())
    assert ("warning: a few massive numbers are most of inputs_0, read by" in said) is named
    assert ("name a8d in --options too" in said) is advised
    (site,) = json.loads((tmp_path / "run" / "profile.json").read_text())["activations"]["sites"]
    assert site["massive"] is True


def test_one_exponent_serves_steps_and_ranges_and_is_needed_by_one_of_them(
    tmp_path: Path, allocate: Allocate
) -> None:
    arguments = ("profile", "--samples", 16, "--options", "w4a4", "--p", 3, "--json", "--out")
    ranges = allocate(*arguments, tmp_path / "ranges", "--ranges", "pnorm").json
    steps = allocate(*arguments, tmp_path / "steps", "--search", "pnorm").json
    for found, searches in ((ranges, ("mse", "pnorm")), (steps, ("pnorm", "loss"))):
        quantizer, settings = found["quantizer"], found["activations"]["settings"]
        assert (quantizer["search"], settings["search"]) == searches
        assert quantizer["p"] == settings["p"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "4b", "--options", "w4,w8a8"], "for some options and not for w4"),
        (["--budget", "4b", "--attention"], "--attention is for activations in low bits"),
        (["--budget", "4b", "--ranges", "mse"], "--ranges is for activations in low bits"),
        (["--budget", "4b", "--percentile", "60"], "--percentile is for activations in low bits"),
        (["--budget", "9b", "--options", "w4a4", "--percentile", "60"], "ranges are found by loss here"),
        (
            ["--budget", "9b", "--options", "w4a4", "--p", "3"],
            "steps are found by mse here and ranges by loss",
        ),
        (
            ["--budget", "9b", "--p", "2", "--search", "minmax"],
            "--p is the exponent of --search pnorm and of",
        ),
        (["--budget", "act_memory=9KiB"], "limits what activations take, and they stay float"),
        (["--budget", "act_memory=9B", "--options", "w4a4"], "budget act_memory=9B is below what values"),
        (["--budget", "9b", "--options", "w4a4d"], "value 'inputs_0', which layer 'stem' reads, cannot"),
        (["--budget", "9b", "--options", "w4a4", "--pin", "stem=w4a5"], "names the activations a5"),
        (["--budget", "9b", "--options", "w4a4", "--percentile", "20"], "the percentile is 20"),
    ],
)
def test_bad_arguments_about_activations_say_what_to_do(
    arguments: list[str], message: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    assert message in refused(*arguments, "--samples", "16", "--out", tmp_path / "run")
