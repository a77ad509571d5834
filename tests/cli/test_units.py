"""Tiles and runs of inputs through the whole command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import apportion
from apportion.demo import digits_data


@pytest.fixture(scope="module")
def by_inputs(allocate: Any, fast: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run per run of 16 inputs."""
    folder = tmp_path_factory.mktemp("units") / "run"
    outcome = allocate("--budget", "4b", "--unit", "inputs:16", "--quiet", "--out", folder, *fast)
    assert outcome.code == 0, outcome.err
    return folder


def check(folder: Path, unit: str) -> None:
    """The plan is per unit and within its budget, and the stored network does what it says."""
    plan = apportion.read_plan(folder / "plan.json")
    assert plan.unit == unit
    assert plan.complexity.average_bits <= 4
    assert plan.measured is not None
    held_out = digits_data()[1]
    right = apportion.load(folder)(held_out.inputs).argmax(1) == held_out.labels
    assert right.double().mean().item() == plan.measured.accuracy


def test_a_run_per_tile_gives_the_channels_of_a_tile_one_option(
    allocate: Any, fast: tuple[str, ...], tmp_path: Path
) -> None:
    outcome = allocate("--budget", "4b", "--unit", "tile:8", "--json", "--out", tmp_path / "run", *fast)
    assert outcome.code == 0
    check(tmp_path / "run", "tile:8")
    layers = apportion.read_plan(tmp_path / "run" / "plan.json").layers
    assert any(layer.strips is not None for layer in layers)
    for layer in layers:
        options = layer.strip_options()
        assert all(len(set(options[start : start + 8])) == 1 for start in range(0, len(options), 8))


def test_a_run_per_run_of_inputs_cuts_the_linear_layer_and_no_other(by_inputs: Path) -> None:
    check(by_inputs, "inputs:16")
    layers = apportion.read_plan(by_inputs / "plan.json").layers
    assert {layer.cut for layer in layers if len(layer.shape) == 2} == {"inputs:16"}
    assert {(layer.cut, layer.strips) for layer in layers if len(layer.shape) > 2} == {(None, None)}


def test_runs_of_inputs_need_scores_of_their_own(refused: Any, profiled: Path, by_inputs: Path) -> None:
    for folder, unit, other in ((profiled, "inputs:16", "channel"), (by_inputs, "channel", "inputs:16")):
        message = refused("solve", "--budget", "4b", "--unit", unit, "--force", "--out", folder)
        assert f"none to choose per {unit}" in message
        assert f"--unit {other}" in message
        assert f"profile with --unit {unit}" in message


def test_a_profile_of_runs_of_inputs_gives_plans_per_layer_too(
    allocate: Any, by_inputs: Path, tmp_path: Path
) -> None:
    profile = by_inputs / "profile.json"
    outcome = allocate("solve", "--budget", "4b", "--unit", "layer", "--profile", profile, "--out", tmp_path)
    assert outcome.code == 0, outcome.err
    plan = apportion.read_plan(tmp_path / "plan.json")
    assert plan.layers[-1].cut == "inputs:16"
    assert all(layer.option is not None for layer in plan.layers)


def test_an_edited_plan_with_a_run_that_is_not_there_is_refused_by_the_layer(
    refused: Any, by_inputs: Path, tmp_path: Path
) -> None:
    document = json.loads((by_inputs / "plan.json").read_text())
    head = document["layers"][-1]
    head.pop("option", None)
    head["strips"] = {"w2": "0-2", "w8": "3"}
    edited = tmp_path / "plan.json"
    edited.write_text(json.dumps(document))
    message = refused("finalize", "--plan", edited, "--out", tmp_path / "run")
    assert f"layer '{head['name']}': option w8 names strip 3, but the strips are 0 to 2" in message


def test_a_unit_that_is_none_is_refused_with_the_grammar(refused: Any, tmp_path: Path) -> None:
    message = refused("--budget", "4b", "--unit", "tile:1", "--out", tmp_path / "run")
    assert "a size is at least 2; write layer, channel, tile:16" in message


def test_runs_that_no_layer_has_are_refused(refused: Any, fast: tuple[str, ...], tmp_path: Path) -> None:
    message = refused("--budget", "4b", "--unit", "inputs:100", "--out", tmp_path / "run", *fast)
    assert "no layer can be cut per inputs:100" in message
    assert "48 inputs" in message
