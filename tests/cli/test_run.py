"""The whole job in one command: what it writes, says, uses again and refuses to replace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import apportion
from apportion.demo import digits_data

FILES = {"plan.json", "profile.json", "profile.safetensors", "program.json", "weights.safetensors"}
SPINNING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def test_a_run_leaves_its_documents_its_charts_and_nothing_else(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    charts = {f"{chart}.{kind}" for chart in ("pareto", "plan", "sensitivity") for kind in ("png", "svg")}
    assert names == FILES | charts


def test_a_plan_keeps_its_budget_and_carries_proof_and_measurement(finished: Path) -> None:
    plan = apportion.read_plan(finished / "plan.json")
    assert plan.complexity.average_bits <= 4
    assert plan.certificate is not None
    assert plan.certificate.bound <= plan.certificate.objective
    assert plan.measured is not None
    assert plan.measured.data == "digits, held-out part"
    assert plan.guard is not None
    assert plan.guard.kept == "plan"


def test_the_written_network_is_as_accurate_as_its_plan_says(finished: Path) -> None:
    held_out = digits_data()[1]
    right = apportion.load(finished)(held_out.inputs).argmax(1) == held_out.labels
    measured = apportion.read_plan(finished / "plan.json").measured
    assert measured is not None
    assert right.double().mean().item() == measured.accuracy


def test_what_stays_float_is_said_where_it_is_not_little(
    allocate: Any, nets: Path, save_inputs: Any, tmp_path: Path
) -> None:
    model = ("--model", f"{nets}:growing", "--data", save_inputs(), "--options", "w4,w8", "--out", tmp_path)
    for command in (("profile",), ("--budget", "6b", "--method", "nearest")):
        outcome = allocate(*command, *model)
        assert outcome.code == 0, outcome
        said = " ".join(outcome.out.split())
        assert "stay float: 36 numbers, 2%: 0.weight (read by aten.conv_transpose2d.input" in said


def test_json_is_one_object_and_all_there_is_on_standard_output(
    allocate: Any, fast: tuple[str, ...], profiled: Path
) -> None:
    outcome = allocate("--budget", "4b", "--json", "--out", profiled, *fast)
    assert outcome.code == 0
    assert outcome.json["folder"] == str(profiled)
    assert outcome.json["plan"] == json.loads((profiled / "plan.json").read_text())
    assert {"finalize", "save", "solve"} <= set(outcome.json["seconds"])
    assert all((profiled / name).is_file() for name in outcome.json["charts"])


def test_a_second_run_uses_the_profile_again_and_another_budget_does_too(
    allocate: Any, fast: tuple[str, ...], finished: Path, contents: Any
) -> None:
    before = contents(finished)
    outcome = allocate("--budget", "3b", "--after", "nearest", "--force", "--json", "--out", finished, *fast)
    assert outcome.code == 0
    assert "is used again" in outcome.err
    assert "profile" not in outcome.json["seconds"]
    after = contents(finished)
    assert after["profile.json"] == before["profile.json"]
    assert after["plan.json"] != before["plan.json"]


def test_profiles_of_both_kinds_are_found_again_whichever_was_measured_first(
    allocate: Any, fast: tuple[str, ...], tmp_path: Path
) -> None:
    out = ("--unit", "layer", "--out", tmp_path / "run", "--force", *fast)
    common = ("--budget", "3b", "--json", *out)
    first = allocate(*common, "--method", "gptq")
    assert first.code == 0, first
    assert apportion.read_profile(tmp_path / "run" / "profile-gptq.json")[0].after == "gptq"
    both = allocate(*common)
    assert "profile-gptq.json fits and is used again" in both.err
    assert apportion.read_profile(tmp_path / "run" / "profile.json")[0].after == "nearest"
    for asked, name in ((), "profile-gptq"), (("--method", "nearest"), "profile"):
        again = allocate(*common, *asked)
        assert f"{name}.json fits and is used again" in again.err
        assert "profile" not in again.json["seconds"]
    # The plan in the folder is now of nearest scores, from which its charts and its uniform rival follow,
    # whatever is wrong with the other profile.
    (tmp_path / "run" / "profile-gptq.safetensors").unlink()
    assert allocate("plot", tmp_path / "run").code == 0
    made = allocate("finalize", "--method", "nearest", *out[2:5], "--samples", "64", "--json").json
    assert made["plan"]["guard"] is not None
    assert "measuring again" in allocate("frontier", "--count", "2", *out).err


def test_quiet_says_nothing_but_the_result(allocate: Any, fast: tuple[str, ...], profiled: Path) -> None:
    outcome = allocate("--budget", "4b", "--quiet", "--out", profiled, *fast)
    assert outcome.code == 0
    assert outcome.err == ""
    assert "this plan" in outcome.out


def test_existing_results_are_not_replaced_without_force(
    refused: Any, fast: tuple[str, ...], finished: Path
) -> None:
    message = refused("--budget", "3b", "--out", finished, *fast)
    assert "already holds plan.json" in message
    assert "--force" in message


def test_force_replaces_and_gives_the_same_again(
    allocate: Any, fast: tuple[str, ...], finished: Path, contents: Any, packed: Any
) -> None:
    before, weights = contents(finished), packed(finished)
    for name in ("plan.json", "weights.safetensors", "program.json"):
        (finished / name).write_text("{}")
    common = ("--budget", "4b", "--unit", "channel", "--after", "nearest")
    outcome = allocate(*common, "--force", "--out", finished, *fast)
    assert outcome.code == 0
    after = contents(finished)
    assert packed(finished) == weights
    assert after == before | {"weights.safetensors": after["weights.safetensors"]}


def test_one_seed_gives_one_result_and_another_seed_other_scores(
    allocate: Any, fast: tuple[str, ...], finished: Path, tmp_path: Path, contents: Any, packed: Any
) -> None:
    same, other = tmp_path / "same", tmp_path / "other"
    settings = ("--budget", "4b", "--unit", "channel", "--after", "nearest", *fast)
    assert allocate(*settings, "--out", same).code == 0
    assert allocate("profile", "--seed", "1", *fast, "--out", other).code == 0
    assert packed(same) == packed(finished)
    for name in ("plan.json", "program.json", "profile.safetensors"):
        assert contents(same)[name] == contents(finished)[name]
    assert contents(other)["profile.safetensors"] != contents(finished)["profile.safetensors"]


@pytest.mark.parametrize("unit", ["layer", "channel"])
@pytest.mark.parametrize("budget", ["2.2b", "16KiB", "15%"])
def test_every_unit_and_form_of_budget_is_kept(allocate: Any, profiled: Path, unit: str, budget: str) -> None:
    outcome = allocate("solve", "--budget", budget, "--unit", unit, "--json", "--out", profiled)
    assert outcome.code == 0
    complexity = outcome.json["plan"]["complexity"]
    limit = {
        "2.2b": 2.2 * complexity["weight_count"] + complexity["fixed_bits"],
        "16KiB": 16 * 1024 * 8,
        "15%": 0.15 * complexity["float_bits"],
    }[budget]
    assert complexity["size_bits"] <= limit


def test_auto_is_never_worse_on_its_calibration_data_than_one_unit_alone(
    allocate: Any, fast: tuple[str, ...], profiled: Path
) -> None:
    losses = {
        unit: allocate("--budget", "3b", "--unit", unit, "--force", "--json", "--out", profiled, *fast).json[
            "plan"
        ]["guard"]["plan_loss"]
        for unit in ("auto", "layer", "channel")
    }
    assert losses["auto"] == min(losses.values())


def test_a_users_network_goes_the_same_way(
    allocate: Any, nets: Path, save_inputs: Any, tmp_path: Path
) -> None:
    data, out = save_inputs(labels=torch.arange(16).numpy() % 5), tmp_path / "run"
    outcome = allocate(
        "--budget", "4b", "--model", f"{nets}:small", "--data", data, "--eval-data", data,
        "--options", "w2..4,w2x2", "--correct", "bias", "--json", "--out", out,
    )  # fmt: skip
    assert outcome.code == 0, outcome
    assert [layer["name"] for layer in outcome.json["plan"]["layers"]] == ["0", "3"]
    assert outcome.json["plan"]["measured"]["accuracy"] is not None
    assert apportion.load(out)(torch.zeros(3, 1, 8, 8)).shape == (3, 5)


@pytest.mark.parametrize(("kind", "given"), [("float16", np.float16), ("bfloat16", np.float32)])
def test_a_network_in_half_precision_takes_floats_of_any_type(
    allocate: Any, nets: Path, save_inputs: Any, tmp_path: Path, kind: str, given: type
) -> None:
    inputs, out = np.random.default_rng(0).normal(size=(16, 1, 8, 8)).astype(given), tmp_path / "run"
    data, held_out = save_inputs(inputs), save_inputs(inputs.astype(np.float64), "held_out.npz")
    outcome = allocate(
        "--budget", "4b", "--model", f"{nets}:typed('{kind}')", "--data", data, "--eval-data", held_out,
        "--options", "w2..4", "--method", "nearest", "--unit", "layer", "--out", out,
    )  # fmt: skip
    assert outcome.code == 0, outcome
    dtype = getattr(torch, kind)
    assert apportion.load(out)(torch.zeros(3, 1, 8, 8, dtype=dtype)).dtype == dtype


def test_a_pt2_file_needs_no_data_but_calibration(allocate: Any, save_inputs: Any, tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5)).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(module, (torch.zeros(2, 1, 8, 8),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "net.pt2")
    outcome = allocate(
        "--budget", "4b", "--model", tmp_path / "net.pt2", "--data", save_inputs(), "--options", "w2..4",
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert outcome.code == 0, outcome


def test_no_arguments_and_help_teach_with_examples(allocate: Any) -> None:
    bare, helped = allocate(), allocate("--help")
    assert bare.code == helped.code == 0
    for text in (bare.out, helped.out):
        assert "allocate --budget 4b" in text
        assert "profile" in text


def test_help_names_every_quantity_and_activations(allocate: Any) -> None:
    helped = allocate("--help").out
    for form in ("macs=80M", "bops=2.5G", "act_memory=200KiB", "latency=3.5", "w4a8d", "w2..8a4..8"):
        assert form in helped


@pytest.mark.parametrize("stage", ["profile", "solve", "finalize", "evaluate", "show", "plot"])
def test_every_stage_has_help(allocate: Any, stage: str) -> None:
    outcome = allocate(stage, "--help")
    assert outcome.code == 0
    assert f"allocate {stage}" in outcome.out


def test_the_version_is_that_of_the_package(allocate: Any) -> None:
    outcome = allocate("--version")
    assert (outcome.code, outcome.out) == (0, f"apportion {apportion.__version__}\n")


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-m", "apportion", "--budget", "0b"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the budget '0b'")
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_threads_that_wait_sleep_soon_unless_the_user_says_otherwise(
    given: dict[str, str], spins: str
) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in SPINNING} | given
    report = "import apportion, os; print(os.environ.get('GOMP_SPINCOUNT'))"
    done = subprocess.run(
        [sys.executable, "-c", report], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.split() == [spins]
