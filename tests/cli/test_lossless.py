"""A limit on the drop in the place of a budget: the least size, measured within, and how sure that is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import apportion
from apportion.demo import digits_data

TOKENS = """
import torch
from torch import nn


def tokens():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(20, 16), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 20))
"""


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Held-out digits with labels."""
    held_out = digits_data()[1]
    path = tmp_path / "digits.npz"
    np.savez(path, inputs=held_out.inputs.numpy(), labels=held_out.labels.numpy())
    return path


@pytest.fixture
def token_run(tmp_path: Path) -> tuple[str, ...]:
    """A network with an answer per token, and data with labels for each."""
    (tmp_path / "lm.py").write_text(TOKENS)
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 20, (32, 6))
    np.savez(tmp_path / "tokens.npz", inputs=inputs, labels=rng.integers(0, 20, (32, 6)))
    return ("--model", f"{tmp_path / 'lm.py'}:tokens", "--data", str(tmp_path / "tokens.npz"))


@pytest.mark.parametrize("unit", ["auto", "layer", "channel", "tile:8"])
def test_the_least_size_is_within_the_limit_and_every_evaluation_is_shown(
    allocate: Any, fast: tuple[str, ...], tmp_path: Path, unit: str
) -> None:
    outcome = allocate("--max-drop", "0.01kl", "--unit", unit, "--out", tmp_path / "run", *fast)
    assert outcome.code == 0, outcome
    plan = apportion.read_plan(tmp_path / "run" / "plan.json")
    assert plan.search is not None
    assert plan.measured is not None
    assert plan.measured.drop is not None
    assert plan.measured.loss == plan.measured.drop.value <= 0.01
    assert plan.search.data == plan.measured.data == "digits, held-out part"
    lines = [line for line in outcome.err.splitlines() if line.endswith((", within", ", outside"))]
    assert len(lines) == len(plan.search.trials) <= 14
    assert unit in ("auto", plan.unit)
    text = " ".join(outcome.out.split())
    assert "the least size found within a drop of 0.01kl" in text
    assert "slightly optimistic" in text


def test_lossless_is_a_tenth_of_a_point_and_says_what_the_samples_cannot_tell(
    allocate: Any, fast: tuple[str, ...], tmp_path: Path
) -> None:
    outcome = allocate("--lossless", "--out", tmp_path / "run", *fast)
    assert outcome.code == 0, outcome
    plan = apportion.read_plan(tmp_path / "run" / "plan.json")
    assert plan.search is not None
    assert plan.search.limit == "0.1%"
    assert plan.measured is not None
    drop = plan.measured.drop
    assert drop is not None
    assert plan.measured.accuracy is not None
    assert plan.measured.float_accuracy is not None
    assert drop.value == pytest.approx(plan.measured.float_accuracy - plan.measured.accuracy)
    assert drop.value <= 0.001 < drop.high
    text = " ".join(outcome.out.split())
    assert "cannot be told from 500 samples" in text
    assert "95%" in text


def test_hardware_of_one_width_takes_a_second_point_where_the_limit_needs_it(
    allocate: Any, tmp_path: Path
) -> None:
    settings = ("--samples", "64", "--options", "w2x1..2", "--unit", "layer", "--json")
    outcome = allocate("--max-drop", "0.02kl", "--out", tmp_path / "run", *settings)
    assert outcome.code == 0, outcome
    plan = outcome.json["plan"]
    assert {layer["option"] for layer in plan["layers"]} == {"w2", "w2x2"}
    assert plan["measured"]["loss"] <= 0.02


def test_the_plan_found_is_evaluated_and_shown_like_any_other(
    allocate: Any, fast: tuple[str, ...], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert allocate("--max-drop", "0.02kl", "--out", out, *fast).code == 0
    stored = json.loads((out / "plan.json").read_text())
    assert allocate("evaluate", out, "--json").json == stored["measured"]
    assert "the least size found" in allocate("show", out).out
    assert allocate("plot", out).code == 0


def test_constraints_hold_in_every_plan_of_the_search(
    allocate: Any, fast: tuple[str, ...], tmp_path: Path
) -> None:
    rules = ("--pin", "stem=w8", "--exclude", "classifier", "--tie", "identity_block.*")
    outcome = allocate("--max-drop", "0.02kl", "--out", tmp_path / "run", *rules, *fast)
    assert outcome.code == 0, outcome
    plan = apportion.read_plan(tmp_path / "run" / "plan.json")
    options = {layer.name: layer.option for layer in plan.layers}
    assert options["stem"] == "w8"
    assert "classifier" not in options
    assert options["identity_block.conv1"] == options["identity_block.conv2"] is not None


def test_a_search_without_labels_judges_on_what_was_held_out_too(
    allocate: Any, fast: tuple[str, ...], tmp_path: Path, labelled: Path
) -> None:
    with np.load(labelled) as arrays:
        np.savez(tmp_path / "bare.npz", inputs=arrays["inputs"])
    # Labels are in the calibration data alone: it is searched, and the others judge the KL.
    outcome = allocate(
        "--max-drop", "2%", "--data", labelled, "--eval-data", tmp_path / "bare.npz",
        "--out", tmp_path / "run", *fast,
    )  # fmt: skip
    assert outcome.code == 0, outcome
    plan = apportion.read_plan(tmp_path / "run" / "plan.json")
    assert plan.search is not None
    assert plan.search.data == str(labelled)
    assert plan.measured is not None
    assert plan.measured.data == str(tmp_path / "bare.npz")
    assert plan.measured.drop is None
    assert "slightly optimistic" not in outcome.out


def test_a_limit_on_the_perplexity_needs_and_takes_a_label_per_token(
    allocate: Any, tmp_path: Path, token_run: tuple[str, ...]
) -> None:
    outcome = allocate("--max-drop", "1%ppl", "--options", "w2..6", "--out", tmp_path / "run", *token_run)
    assert outcome.code == 0, outcome
    plan = apportion.read_plan(tmp_path / "run" / "plan.json")
    assert plan.measured is not None
    assert plan.measured.drop is not None
    assert plan.measured.drop.kind == "perplexity"
    assert plan.measured.drop.value <= 0.01


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--lossless", "--budget", "4b"), "--budget 4b limits what is spent"),
        (("--max-drop", "0.1%", "--budget", "4b"), "give one of the two"),
        (("--lossless", "--max-drop", "1%"), "give one of the two"),
        (("--max-drop", "much"), "'much' is not a drop of quality"),
        (("--max-drop", "-1%"), "below 0"),
        (("--max-drop", "1%ppl"), "needs a label for every token"),
        (("--lossless", "--options", "w2,w4t", "--unit", "channel"), "--unit layer"),
        (("--lossless", "--pin", "nowhere=w4"), "nowhere"),
    ],
)
def test_an_impossible_limit_is_named_before_any_work(
    refused: Any, fast: tuple[str, ...], tmp_path: Path, arguments: tuple[str, ...], reason: str
) -> None:
    assert reason in refused("--out", tmp_path / "run", *fast, *arguments)


def test_accuracy_without_labels_is_refused_with_the_alternatives(
    refused: Any, tmp_path: Path, nets: Path, save_inputs: Any
) -> None:
    message = refused(
        "--lossless", "--model", f"{nets}:small", "--data", save_inputs(), "--out", tmp_path / "run"
    )
    assert "needs labels" in message
    assert "--eval-data" in message
    assert "--max-drop 0.01kl" in message


def test_a_limit_out_of_reach_names_the_best_that_was_measured(
    allocate: Any, fast: tuple[str, ...], tmp_path: Path
) -> None:
    outcome = allocate("--max-drop", "0.0000001kl", "--out", tmp_path / "run", *fast)
    assert outcome.code == 2
    assert "measured has KL" in outcome.err
    assert "--options" in outcome.err
    # Scores are kept for the next try; there is no plan.
    assert not (tmp_path / "run" / "plan.json").exists()
    assert (tmp_path / "run" / "profile-gptq.json").exists()


def test_an_edit_ends_what_the_search_found(allocate: Any, fast: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert allocate("--max-drop", "0.02kl", "--unit", "layer", "--out", out, *fast).code == 0
    plan = json.loads((out / "plan.json").read_text())
    layer = next(layer for layer in plan["layers"] if layer["option"] != "w2")
    layer["option"] = "w2"
    (out / "plan.json").write_text(json.dumps(plan))
    outcome = allocate("finalize", "--force", "--samples", "64", "--out", out)
    assert outcome.code == 0, outcome
    assert apportion.read_plan(out / "plan.json").search is None


def test_other_weights_end_what_the_search_measured(
    allocate: Any, fast: tuple[str, ...], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert allocate("--max-drop", "0.02kl", "--unit", "layer", "--out", out, *fast).code == 0
    assert apportion.read_plan(out / "plan.json").search is not None
    outcome = allocate("finalize", "--force", "--method", "nearest", "--samples", "64", "--out", out)
    assert outcome.code == 0, outcome
    assert "least size found" not in outcome.out
    assert apportion.read_plan(out / "plan.json").search is None
