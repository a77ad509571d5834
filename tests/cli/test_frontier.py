"""The measured frontier: plans and uniform options on the same data, in one document and one chart."""

from __future__ import annotations

import json
import runpy
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch

from apportion.allocator import MeasuredFrontier, read_frontier
from apportion.sensitivity import read_profile

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def measured_run(allocate: Any, fast: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(tmp_path_factory.mktemp("frontier")) / "run"
    outcome = allocate("frontier", "--count", "4", "--from", "2.5b", "--to", "6b", "--out", folder, *fast)
    assert outcome.code == 0, outcome
    assert "frontier.json" in outcome.err
    return folder


def test_plans_rise_from_the_first_budget_to_the_last_within_each(measured_run: Path) -> None:
    frontier = read_frontier(measured_run / "frontier.json")
    budgets = [float(point.name.removesuffix("b")) for point in frontier.plans]
    assert budgets == pytest.approx([2.5, 2.5 + 3.5 / 3, 2.5 + 7 / 3, 6.0], abs=1e-3)
    for point, budget in zip(frontier.plans, budgets, strict=True):
        assert point.average_bits <= budget
        assert point.measured.drop is not None
    assert {point.name for point in frontier.uniform} == {"w2", "w4", "w8"}
    # Far enough apart that the loss falls, whatever the noise.
    assert all(one.measured.loss > other.measured.loss for one, other in pairwise(frontier.plans))


def test_the_frontier_is_that_of_the_profile_beside_it(measured_run: Path) -> None:
    frontier, (profile, _) = (
        read_frontier(measured_run / "frontier.json"),
        read_profile(measured_run / "profile-gptq.json"),
    )
    assert frontier.profile == profile.fingerprint.text()
    assert (frontier.fixed_bits, frontier.weight_count) == (profile.fixed_bits, profile.weight_count)


def test_plans_stand_above_the_bound_whatever_they_were_chosen_by(allocate: Any, tmp_path: Path) -> None:
    # Channels by the joint objective, values by their own scores.
    few = ("--count", "3", "--samples", "32", "--options", "w2a4,w4a8", "--method", "nearest")
    outcome = allocate("frontier", *few, "--unit", "channel", "--from", "2.5b", "--out", tmp_path / "run")
    assert outcome.code == 0, outcome
    frontier = read_frontier(tmp_path / "run" / "frontier.json")
    for point in frontier.plans:
        bound = np.interp(point.weight_bits, frontier.curve.bound_bits, frontier.curve.bound_loss)
        # Between the vertices that the document keeps, a line lies a little above the bound.
        assert point.predicted_loss >= 0.999 * bound


def test_a_profile_that_fits_is_used_again_and_nothing_else_is_replaced(
    allocate: Any, refused: Any, fast: tuple[str, ...], finished: Path, contents: Any
) -> None:
    before = contents(finished)
    few = ("--count", "2", "--unit", "layer", "--after", "nearest", *fast)
    outcome = allocate("frontier", *few, "--out", finished)
    assert outcome.code == 0, outcome
    assert "is used again" in outcome.err
    after = contents(finished)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"frontier.json", "frontier.png", "frontier.svg"}
    assert "already holds frontier.json" in refused("frontier", "--count", "2", "--out", finished, *fast)


def test_the_table_and_the_json_say_the_same(allocate: Any, measured_run: Path) -> None:
    shown = allocate("show", measured_run / "frontier.json")
    assert shown.code == 0
    document = allocate("show", measured_run / "frontier.json", "--json").json
    assert document == json.loads((measured_run / "frontier.json").read_text())
    for point in (*document["plans"], *document["uniform"]):
        assert f"{point['average_bits']:.3f}" in shown.out
    assert "uniform w4" in shown.out


def test_plot_draws_the_frontier_again(allocate: Any, measured_run: Path) -> None:
    (measured_run / "frontier.png").unlink()
    outcome = allocate("plot", measured_run)
    assert outcome.code == 0, outcome
    assert "frontier.png" in outcome.err
    assert (measured_run / "frontier.png").stat().st_size > 0


def test_without_labels_the_frontier_has_no_accuracy(
    allocate: Any, tmp_path: Path, nets: Path, save_inputs: Any
) -> None:
    outcome = allocate(
        "frontier", "--count", "2", "--options", "w3,w6", "--model", f"{nets}:small", "--data", save_inputs(),
        "--out", tmp_path / "run", "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome
    assert all("drop" not in point["measured"] for point in outcome.json["plans"])
    assert "accuracy" not in allocate("show", tmp_path / "run" / "frontier.json").out


NORMED = """
import torch
from torch import nn


class Normed(nn.Module):
    # NaN for every sample on which the few features are all zero.
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.last = nn.Linear(8, 5)

    def forward(self, x):
        y = self.second(self.first(x).relu()).relu()
        return 10 * self.last(y / y.norm(dim=-1, keepdim=True))
"""


def test_budgets_at_which_no_output_is_finite_are_left_out(
    allocate: Any, tmp_path: Path, save_inputs: Any
) -> None:
    path = tmp_path / "normed.py"
    path.write_text(NORMED)
    inputs = torch.randn(400, 6, generator=torch.Generator().manual_seed(3))
    space = runpy.run_path(str(path))
    with torch.inference_mode():
        finite = space["Normed"]()(inputs).isfinite().all(1)
    outcome = allocate(
        "frontier", "--count", "4", "--options", "w2..4", "--model", f"{path}:Normed",
        "--data", save_inputs(inputs[finite][:128].numpy()), "--out", tmp_path / "run", "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome
    assert "is left out: " in outcome.err
    assert "NaN or infinite" in outcome.err
    assert outcome.json["plans"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--from", "5b", "--to", "3b"), "--to 3b is not above --from 5b"),
        (("--from", "300KiB"), "--from 300KiB is not an average of bits"),
        (("--to", "much"), "'much' is not a budget"),
        (("--from", "1b"), "budget 1b is below"),
        (("--count", "0"), "--count"),
        (("--unit", "channel", "--scores", "exact"), "--unit layer"),
        (("--pin", "stem=w4", "--forbid", "*=w4"), "error: layer 'stem' has no option left of w2, w4, w8"),
        (("--tie", "stem"), "error: tie stem: only layer 'stem' matches"),
    ],
)
def test_an_impossible_stretch_is_named_before_any_work(
    refused: Any, fast: tuple[str, ...], tmp_path: Path, arguments: tuple[str, ...], reason: str
) -> None:
    assert reason in refused("frontier", "--out", tmp_path / "run", *fast, *arguments)


def test_an_end_below_the_least_is_refused_with_the_least_before_anything_is_scored(
    refused: Any, fast: tuple[str, ...], tmp_path: Path
) -> None:
    message = refused("frontier", "--to", "1b", "--out", tmp_path / "run", *fast)
    assert "--to: " in message
    assert "1b" in message
    assert "can reach per layer: from 2.096b" in message
    assert not (tmp_path / "run").exists()


def test_budgets_in_a_file_of_constraints_are_refused(
    refused: Any, fast: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "rules.toml"
    path.write_text('budgets = ["4b"]\n')
    message = refused("frontier", "--constraints", path, "--out", tmp_path / "run", *fast)
    assert "--from and --to" in message


def test_the_published_schema_is_that_of_the_code_and_accepts_a_frontier(measured_run: Path) -> None:
    published = json.loads((ROOT / "docs" / "frontier.schema.json").read_text(encoding="utf-8"))
    assert published == MeasuredFrontier.json_schema(), "run: python docs/write_schemas.py"
    jsonschema.Draft202012Validator.check_schema(published)
    jsonschema.validate(json.loads((measured_run / "frontier.json").read_text()), published)
