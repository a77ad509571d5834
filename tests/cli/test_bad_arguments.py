"""Arguments that cannot be: one paragraph that says what is allowed, exit code 2, and nothing written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize("budget", ["0b", "-1b", "abc", "nan", "inf", "", "4", "1e99b", "4x", "4 b b"])
def test_what_is_not_a_budget_is_answered_with_the_grammar(refused: Any, tmp_path: Path, budget: str) -> None:
    message = refused(f"--budget={budget}", "--out", tmp_path / "run")
    assert "3.5b" in message
    assert "300KiB" in message
    assert "25%" in message


@pytest.mark.parametrize("stage", ["whole", "solve"])
@pytest.mark.parametrize("budget", ["0.5b", "8KiB", "5%"])
def test_a_budget_below_the_least_names_the_least_and_the_greatest(
    refused: Any, fast: tuple[str, ...], profiled: Path, tmp_path: Path, stage: str, budget: str
) -> None:
    if stage == "whole":
        message = refused("--budget", budget, "--out", tmp_path / "run", *fast)
    else:
        message = refused("solve", "--budget", budget, "--unit", "layer", "--out", profiled)
    assert f"budget {budget} is below" in message
    assert "from 2.096b" in message
    assert "to 8.096b" in message


def test_a_budget_that_does_not_even_hold_the_biases_is_refused(
    refused: Any, fast: tuple[str, ...], tmp_path: Path
) -> None:
    assert "unquantized" in refused("--budget", "10B", "--out", tmp_path / "run", *fast)


@pytest.mark.parametrize("unit", ["layer", "channel"])
def test_the_least_budget_is_that_of_one_option_whatever_the_unit(
    allocate: Any, refused: Any, fast: tuple[str, ...], tmp_path: Path, unit: str
) -> None:
    settings = ("--method", "nearest", "--unit", unit, "--out", tmp_path / "run", *fast)
    assert f"per {unit}: from 2.096b" in refused("--budget", "2.095b", *settings)
    outcome = allocate("--budget", "2.0953b", *settings, "--json")
    assert outcome.code == 0
    assert {layer["option"] for layer in outcome.json["plan"]["layers"]} == {"w2"}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "say how much may be spent"),
        (("--options", "w0"), "1 to 8 bits"),
        (("--options", "w4,int8"), "int8"),
        (("--options", ""), "option"),
        (("--options", "w2..99999999999"), "99999999999"),
        (("--model", "net.pt2"), "needs calibration data"),
        (("--weights", "net.safetensors"), "--weights goes with --model"),
        (("--device", "tpu"), "--device tpu cannot be used"),
        (("--device", "meta"), "--device meta cannot be used"),
        (("--device", "cuda:99"), "--device cuda:99 cannot be used"),
        (("--memory", "much"), "--memory is 'much'"),
        (("--memory", "1KiB"), "at least 1MiB|from 1MiB"),
        (("--memory", "9" * 400), "from 1MiB"),
        (("--mean", "grey"), "--mean is 'grey'"),
        (("--search", "pnorm", "--p", "nan"), "nan"),
        (("--search", "pnorm", "--p", "0.5"), "0.5"),
        (("--time-limit", "nan"), "--time-limit"),
        (("--time-limit", "-1"), "--time-limit"),
        (("--samples", "1"), "--samples"),
        (("--draws", "0"), "--draws"),
        (("--seed", "-1"), "--seed"),
        (("--seed", str(10**30)), "--seed"),
        (("--unit", "network"), "--unit"),
        (("--scores", "guess"), "--scores"),
        (("--no-such-option",), "--no-such-option"),
        (("--data", "nothing.npz"), "there is no file nothing.npz"),
        (("--eval-data", "nothing.npz"), "there is no file nothing.npz"),
        (("--unit", "channel", "--scores", "exact"), "--unit layer"),
        (("--unit", "channel", "--options", "w2..4,w4t"), "--unit layer"),
    ],
)
def test_an_impossible_argument_is_named(
    refused: Any, tmp_path: Path, arguments: tuple[str, ...], reason: str
) -> None:
    budget = ("--budget", "4b") if arguments else ("--quiet",)
    message = refused(*budget, "--out", tmp_path / "run", *arguments)
    assert any(part in message for part in reason.split("|"))


def test_an_unknown_stage_is_refused(refused: Any) -> None:
    assert "'compress'" in refused("compress")


@pytest.mark.parametrize("stage", [("--budget", "5b"), ("profile",), ("frontier",)])
def test_an_option_that_no_layer_can_take_is_refused_before_any_work(
    refused: Any, tmp_path: Path, stage: tuple[str, ...]
) -> None:
    arguments = ("--samples", "16", "--options", "w4,w4g433", "--out", tmp_path / "run")
    message = refused(*stage, *arguments)
    assert "no layer can take w4g433: none has more than 432 weights per output channel" in message


def test_solve_needs_a_budget(refused: Any, profiled: Path) -> None:
    assert "--budget" in refused("solve", "--out", profiled)


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("--budget", "3b"), "--budget"),
        (("--json",), "--json"),
        (("--correct", "bias"), "--correct"),
    ],
)
def test_an_option_before_the_stage_is_refused_and_its_place_is_shown(
    refused: Any, profiled: Path, arguments: tuple[str, ...], option: str
) -> None:
    message = refused(*arguments, "solve", "--budget", "4b", "--out", profiled)
    assert f"{option} stands before 'solve'" in message
    assert f"allocate solve {option}" in message


@pytest.mark.parametrize("stage", [("--budget", "4b"), ("profile",)])
def test_an_output_below_a_file_is_refused_before_any_work(
    refused: Any, fast: tuple[str, ...], tmp_path: Path, stage: tuple[str, ...]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    message = refused(*stage, "--out", tmp_path / "file" / "run", *fast)
    assert "cannot write" in message
    assert "--out" in message
    assert "cannot write" in refused(*stage, "--out", tmp_path / "file", *fast)


def test_solving_into_a_place_below_a_file_is_refused(refused: Any, profiled: Path) -> None:
    place = profiled / "profile.json" / "run"
    assert "cannot write" in refused(
        "solve", "--budget", "4b", "--profile", profiled / "profile.json", "--out", place
    )
