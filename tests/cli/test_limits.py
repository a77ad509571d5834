"""Several budgets, tables and constraints, written or in a file, from scores to a finished network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import apportion
from apportion.allocator import excesses
from apportion.demo import digits_data

TIED = ("identity_block.conv1", "identity_block.conv2")

FILE = """
budgets = ["5b", "latency=30"]
tie = [["identity_block.conv1", "identity_block.conv2"]]
exclude = ["classifier"]

[pin]
stem = "w8"

[forbid]
"strided_block.*" = ["w2"]

[options]
"strided_block.conv1" = "w4,w8"

[tables]
latency = "latency.csv"
"""


@pytest.fixture
def table(profiled: Path, tmp_path: Path) -> Path:
    """Latencies of every option of every layer: its bits."""
    profile = json.loads((profiled / "profile.json").read_text())
    lines = [
        f"{layer['name']},{option},{option.removeprefix('w')}"
        for layer in profile["layers"]
        for option in profile["options"]
    ]
    path = tmp_path / "latency.csv"
    path.write_text("\n".join(["layer,option,cost", *lines]))
    return path


def arguments(table: Path) -> tuple[object, ...]:
    """What `FILE` says."""
    return (
        "--budget", "5b", "--budget", "latency=30", "--tie", ",".join(TIED), "--exclude", "classifier",
        "--pin", "stem=w8", "--forbid", "strided_block.*=w2", "--layer-options", "strided_block.conv1=w4,w8",
        "--table", f"latency={table}",
    )  # fmt: skip


def test_the_whole_job_keeps_all_that_was_asked_and_a_file_says_the_same(
    allocate: Any, fast: tuple[str, ...], table: Path, tmp_path: Path, packed: Any
) -> None:
    written, read = tmp_path / "written", tmp_path / "read"
    (tmp_path / "limits.toml").write_text(FILE)
    assert allocate(*arguments(table), "--unit", "channel", "--out", written, *fast).code == 0
    outcome = allocate(
        "--constraints", tmp_path / "limits.toml", "--unit", "channel", "--out", read, "--json", *fast
    )
    assert outcome.code == 0, outcome
    shown = allocate("show", written).out
    assert "of predicted loss" in shown
    assert ", within latency=30" in shown
    plan = apportion.read_plan(written / "plan.json")
    assert plan.model_dump(mode="json", exclude_none=True) == outcome.json["plan"]
    assert packed(written) == packed(read)
    options = {layer.name: layer.option for layer in plan.layers}
    assert "classifier" not in options
    assert options["stem"] == "w8"
    assert options[TIED[0]] == options[TIED[1]] is not None
    assert plan.budgets == ("5b", "latency=30")
    assert excesses(plan) == ()
    assert plan.complexity.costs["latency"] <= 30
    assert plan.certificate is not None
    assert set(plan.certificate.shadow_prices) == {"size", "latency"}
    inputs = digits_data()[1].inputs[:4]
    assert apportion.load(written)(inputs).shape == (4, 10)


def test_the_stages_keep_what_was_excluded_and_refuse_what_was_not(
    allocate: Any, refused: Any, fast: tuple[str, ...], tmp_path: Path, profiled: Path
) -> None:
    out = tmp_path / "stages"
    outcome = allocate("profile", "--exclude", "class*", "--json", "--out", out, *fast)
    assert outcome.code == 0
    assert outcome.json["excluded"] == ["classifier"]
    assert outcome.json["skipped"]["classifier.weight"] == "excluded"
    assert "options or settings" in refused("--budget", "4b", "--out", out, *fast)
    assert allocate("solve", "--budget", "4b", "--out", out).code == 0
    assert apportion.read_plan(out / "plan.json").constraints is not None
    assert allocate("finalize", "--samples", "64", "--out", out).code == 0
    assert allocate("evaluate", out).code == 0
    message = refused("solve", "--budget", "4b", "--exclude", "classifier", "--out", profiled)
    assert "profile again with --exclude 'classifier'" in message


def test_an_edit_against_a_rule_is_refused_with_the_rule(allocate: Any, refused: Any, profiled: Path) -> None:
    assert allocate("solve", "--budget", "4b", "--pin", "stem=w8", "--out", profiled).code == 0
    plan = json.loads((profiled / "plan.json").read_text())
    plan["layers"][0]["option"] = "w4"
    (profiled / "plan.json").write_text(json.dumps(plan))
    message = refused("finalize", "--samples", "64", "--out", profiled)
    assert "layer 'stem' has option w4, against the plan's rule 'pin stem=w8'" in message


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (("--pin", "stem"), "--pin is 'stem'; write it as --pin 'conv1=w8'"),
        (("--pin", "stem=w5"), "add it to --options"),
        (("--pin", "stem=w9"), "pin stem=w9: option has 9 bits"),
        (("--pin", "stem=w8a"), "pin stem=w8a: 'a' is not an activation option"),
        (("--pin", "stam=w4"), "'stam' matches no layer; the nearest are stem"),
        (("--pin", "stem=w4", "--pin", "stem=w8"), "--pin is given for 'stem' twice, w4 and w8"),
        (("--pin", "stem=w4", "--forbid", "*=w4"), "layer 'stem' has no option left"),
        (("--forbid", "stem="), "--forbid is 'stem='"),
        (("--layer-options", "stem=w5..7"), "w5, w6, w7 is not among"),
        (("--tie", "stem,,classifier"), "--tie is 'stem,,classifier'"),
        (("--tie", "stem"), "a tie needs two layers"),
        (("--exclude", "head"), "exclude head: 'head' matches no layer"),
        (("--exclude", "*"), "every layer would stay float"),
        (("--table", "latency"), "--table is 'latency'"),
        (("--table", "latency=nowhere.csv"), "cannot read table latency"),
        (("--table", "size=nowhere.csv"), "a table cannot be named size"),
        (("--constraints", "nowhere.toml"), "cannot read constraints nowhere.toml"),
        (("--budget", "latency=3"), "--table latency=FILE"),
        (("--budget", "macs=1k"), "macs is from"),
        (("--budget", "bops=1k"), "bops is from"),
        (("--unit", "tile:1"), "--unit: the unit 'tile:1' has size 1"),
        (("--unit", "rows"), "--unit: 'rows' is not a unit of choice"),
    ],
)
def test_limits_that_cannot_be_are_named_before_any_work(
    refused: Any, fast: tuple[str, ...], tmp_path: Path, given: tuple[str, ...], reason: str
) -> None:
    assert reason in refused("--budget", "5b", *given, "--out", tmp_path / "run", *fast)


def test_budgets_that_clash_are_named_before_any_work(
    refused: Any, fast: tuple[str, ...], tmp_path: Path, table: Path
) -> None:
    costs = json.dumps(
        {line.split(",")[0]: {"w2": 8, "w4": 4, "w8": 2} for line in table.read_text().splitlines()[1:]}
    )
    (tmp_path / "inverse.json").write_text(costs)
    message = refused(
        "--budget", "3b", "--budget", "slowness=20", "--table", f"slowness={tmp_path / 'inverse.json'}",
        "--out", tmp_path / "run", *fast,
    )  # fmt: skip
    assert "'size' and 'slowness' can be met one at a time but not together" in message


def test_solve_without_any_budget_is_refused(refused: Any, profiled: Path) -> None:
    assert "say how much may be spent" in refused("solve", "--pin", "stem=w8", "--out", profiled)
