"""The stages on their own: together they are the whole job, and each reads what the one before it wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import apportion
from apportion.allocator import ParetoData
from apportion.demo import digits_data
from apportion.errors import InputError


def edit(path: Path, change: Any) -> None:
    plan = json.loads(path.read_text())
    change(plan)
    path.write_text(json.dumps(plan))


def give_first_layer(option: str) -> Any:
    def change(plan: Any) -> None:
        plan["layers"][0].pop("strips", None)
        plan["layers"][0]["option"] = option

    return change


def test_the_stages_one_by_one_are_the_whole_job(
    allocate: Any, fast: tuple[str, ...], finished: Path, tmp_path: Path, contents: Any, packed: Any
) -> None:
    out = tmp_path / "stages"
    assert allocate("profile", "--out", out, *fast).code == 0
    assert allocate("solve", "--budget", "4b", "--out", out).code == 0
    solved = apportion.read_plan(out / "plan.json")
    assert solved.certificate is not None
    assert solved.measured is None
    assert allocate("finalize", "--samples", "64", "--out", out).code == 0
    assert packed(out) == packed(finished)
    for name in ("plan.json", "program.json", "profile.safetensors"):
        assert contents(out)[name] == contents(finished)[name], name


def bound_at(data: ParetoData, weight_bits: int) -> float:
    return float(np.interp((weight_bits + data.fixed_bits) / 8, data.bound_size, data.bound_loss))


def test_the_plan_of_a_joint_objective_stands_above_the_bound_of_sums(
    allocate: Any, profiled: Path, plotted: Any
) -> None:
    assert allocate("solve", "--budget", "3b", "--out", profiled).code == 0
    plan, data = apportion.read_plan(profiled / "plan.json"), plotted(profiled)
    bound = bound_at(data, data.plan.weight_bits)
    assert plan.predicted_loss < bound < data.plan.predicted


def test_profile_prints_a_table_or_its_document(
    allocate: Any, fast: tuple[str, ...], profiled: Path, contents: Any
) -> None:
    before = contents(profiled)
    shown = allocate("profile", "--out", profiled, *fast)
    assert shown.code == 0
    assert "strided_block.conv2" in shown.out
    document = allocate("profile", "--json", "--out", profiled, *fast)
    assert document.json == json.loads((profiled / "profile.json").read_text())
    assert contents(profiled) == before


def test_exact_scores_go_through_the_stages_per_layer(allocate: Any, tmp_path: Path) -> None:
    out = tmp_path / "exact"
    settings = ("--samples", "16", "--options", "w2,w8", "--scores", "exact")
    assert allocate("profile", "--out", out, *settings).code == 0
    assert not (out / "profile.safetensors").exists()
    assert allocate("solve", "--budget", "4b", "--unit", "layer", "--out", out).code == 0
    assert apportion.read_plan(out / "plan.json").unit == "layer"


def test_solve_reads_a_profile_from_anywhere(allocate: Any, profiled: Path, tmp_path: Path) -> None:
    outcome = allocate(
        "solve", "--budget", "4b", "--profile", profiled / "profile.json", "--out", tmp_path / "elsewhere"
    )
    assert outcome.code == 0
    assert (tmp_path / "elsewhere" / "plan.json").is_file()


def test_solve_does_not_replace_a_plan_without_force(allocate: Any, refused: Any, finished: Path) -> None:
    assert "already holds plan.json" in refused("solve", "--budget", "3b", "--out", finished)
    assert allocate("solve", "--budget", "3b", "--force", "--out", finished).code == 0
    assert apportion.read_plan(finished / "plan.json").budgets == ("3b",)


def test_an_edited_plan_is_finalized_without_its_certificate_and_prediction(
    allocate: Any, finished: Path, plotted: Any
) -> None:
    edit(finished / "plan.json", give_first_layer("w2"))
    outcome = allocate("finalize", "--force", "--samples", "64", "--out", finished)
    assert outcome.code == 0, outcome
    assert "its certificate and predicted losses are dropped" in outcome.err
    assert "predicted loss" in outcome.out
    assert "e-0" not in outcome.out
    plan = apportion.read_plan(finished / "plan.json")
    assert plan.layers[0].option == "w2"
    assert plan.certificate is None
    assert plan.guard is None
    assert plan.measured is not None
    assert plotted(finished).plan[1:] == (
        plan.complexity.size_bits - plan.complexity.fixed_bits,
        None,
        plan.measured.loss,
    )
    assert apportion.load(finished)(digits_data()[1].inputs[:2]).shape == (2, 10)


def test_an_edit_over_the_budget_is_refused_with_the_excess(refused: Any, finished: Path) -> None:
    def change(plan: Any) -> None:
        for layer in plan["layers"]:
            layer.pop("strips", None)
            layer["option"] = "w8"

    edit(finished / "plan.json", change)
    assert "more than its budget 4b allows" in refused("finalize", "--force", "--out", finished)


def test_an_edit_to_an_unknown_option_names_layer_and_options(refused: Any, finished: Path) -> None:
    edit(finished / "plan.json", give_first_layer("w5"))
    message = refused("finalize", "--force", "--out", finished)
    assert "layer 'stem' has option w5" in message
    assert "w2, w4, w8" in message


def test_a_plan_is_finalized_only_beside_its_own_profile(
    allocate: Any, refused: Any, finished: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    assert allocate("profile", "--samples", "8", "--options", "w2,w8", "--out", other).code == 0
    message = refused("finalize", "--force", "--profile", other / "profile.json", "--out", finished)
    assert "the plan was solved from profile" in message


def test_the_uniform_plan_is_kept_where_it_measures_better(allocate: Any, finished: Path) -> None:
    # A profile that calls 2 bits harmless for one layer, and 8 bits elsewhere worth everything.
    def change(profile: Any) -> None:
        for layer in profile["layers"]:
            harmless = layer["name"] == "strided_block.conv2"
            for score in layer["scores"]:
                cheap = harmless or score["option"] == "w8"
                score["loss"] = 0.0 if cheap else {"w2": 2.0, "w4": 1.0}[score["option"]]

    edit(finished / "profile.json", change)
    assert allocate("solve", "--budget", "5.2b", "--unit", "layer", "--force", "--out", finished).code == 0
    chosen = {layer.name: layer.option for layer in apportion.read_plan(finished / "plan.json").layers}
    assert chosen["strided_block.conv2"] == "w2"
    outcome = allocate("finalize", "--force", "--samples", "64", "--json", "--out", finished)
    plan = outcome.json["plan"]
    assert plan["guard"]["option"] == "w4, ends w8"
    assert plan["guard"]["uniform_loss"] < plan["guard"]["plan_loss"]
    assert plan["guard"]["kept"] == "uniform"
    assert {layer["option"] for layer in plan["layers"][1:-1]} == {"w4"}
    assert [plan["layers"][end]["option"] for end in (0, -1)] == ["w8", "w8"]


def test_evaluate_agrees_with_the_plan_and_writes_nothing(
    allocate: Any, finished: Path, contents: Any
) -> None:
    before = contents(finished)
    outcome = allocate("evaluate", finished, "--json")
    assert outcome.code == 0
    assert outcome.json == json.loads((finished / "plan.json").read_text())["measured"]
    assert "this plan" in allocate("evaluate", finished).out
    assert contents(finished) == before


def test_weights_of_another_plan_are_refused_until_those_of_the_new_one_are_computed(
    allocate: Any, refused: Any, finished: Path
) -> None:
    assert allocate("solve", "--budget", "5b", "--unit", "layer", "--force", "--out", finished).code == 0
    planned = [layer.option for layer in apportion.read_plan(finished / "plan.json").layers]
    exports = [("export", "--format", form) for form in ("onnx", "safetensors", "modelopt")]
    for arguments in [("evaluate",), *exports]:
        message = refused(*arguments, finished)
        assert "weights.safetensors was computed for another plan than" in message
        assert f"allocate finalize --out {finished} --force" in message
    for load in (apportion.load, apportion.load_state):
        with pytest.raises(InputError, match="another plan"):
            load(finished)
    outcome = allocate("finalize", "--force", "--samples", "64", "--method", "nearest", "--out", finished)
    assert outcome.code == 0, outcome
    assert [layer.option for layer in apportion.read_plan(finished / "plan.json").layers] == planned
    assert allocate("evaluate", finished).code == 0


def test_weights_of_a_plan_before_an_edit_are_refused(refused: Any, finished: Path) -> None:
    edit(finished / "plan.json", give_first_layer("w2"))
    assert "was computed for another plan" in refused("evaluate", finished)


def test_evaluate_refuses_a_run_of_another_network(
    refused: Any, finished: Path, nets: Path, save_inputs: Any
) -> None:
    message = refused("evaluate", finished, "--model", f"{nets}:small", "--data", save_inputs())
    assert "the plan names layer 'stem', which the network does not have" in message


def test_show_prints_plans_and_profiles(allocate: Any, finished: Path) -> None:
    for document in (finished, finished / "plan.json"):
        shown = allocate("show", document)
        assert shown.code == 0
        assert "plan for 4b" in shown.out
        assert "found by local search; the gap is what is proven" in " ".join(shown.out.split())
    assert allocate("show", finished, "--json").json["plan"]["budgets"] == ["4b"]
    profile = finished / "profile.json"
    assert "fisher, 64" in allocate("show", profile).out
    assert allocate("show", profile, "--json").json == json.loads(profile.read_text())


def test_plot_draws_the_charts_again(allocate: Any, finished: Path) -> None:
    charts = [path for path in finished.iterdir() if path.suffix in {".png", ".svg"}]
    for path in charts:
        path.unlink()
    outcome = allocate("plot", finished)
    assert outcome.code == 0
    assert all(path.stat().st_size > 0 and path.name in outcome.err for path in charts)


@pytest.mark.parametrize("stage", ["show", "plot", "evaluate"])
def test_reading_from_a_folder_that_is_not_there_is_refused(refused: Any, tmp_path: Path, stage: str) -> None:
    assert "nowhere" in refused(stage, tmp_path / "nowhere")


@pytest.mark.parametrize("arguments", [("solve", "--budget", "4b"), ("finalize",)])
def test_a_stage_before_its_input_names_the_file(
    refused: Any, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    assert "No such file" in refused(*arguments, "--out", tmp_path / "nowhere")
