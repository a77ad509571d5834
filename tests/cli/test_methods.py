"""How the weights are found: what the command takes, what the plan says, and going on after a kill."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import apportion

LEARNED = (
    "--budget", "2.6b", "--unit", "layer", "--options", "w2,w4", "--samples", "64", "--method", "brecq",
    "--iterations", "60",
)  # fmt: skip
PATIENCE_S = 120


@pytest.mark.parametrize("method", ["nearest", "gptq", "adaquant", "lapq", "adaround", "brecq"])
def test_the_method_is_used_stated_and_printed(
    allocate: Any, fast: tuple[str, ...], tmp_path: Path, method: str
) -> None:
    few = ("--iterations", "5") if method in ("adaquant", "adaround", "brecq") else ()
    arguments = (
        "--budget",
        "3b",
        *fast,
        "--unit",
        "layer",
        "--method",
        method,
        *few,
        "--out",
        tmp_path / "run",
    )
    outcome = allocate(*arguments)
    assert outcome.code == 0, outcome
    assert f"weights by {method}" in outcome.out
    plan = apportion.read_plan(tmp_path / "run" / "plan.json")
    assert plan.reconstruction is not None
    assert plan.reconstruction.method == method
    assert not (tmp_path / "run" / "weights.parts").exists()
    assert f"weights by {method}" in allocate("show", tmp_path / "run").out


def test_corrections_come_after_the_method_in_the_order_given(
    allocate: Any, fast: tuple[str, ...], tmp_path: Path
) -> None:
    outcome = allocate(
        "--budget", "3b", *fast, "--unit", "layer", "--method", "nearest", "--correct", "batch-norm",
        "--correct", "tune", "--out", tmp_path / "run",
    )  # fmt: skip
    assert outcome.code == 0, outcome
    assert "weights by nearest and then batch-norm and then tune" in " ".join(outcome.out.split())
    how = apportion.read_plan(tmp_path / "run" / "plan.json").reconstruction
    assert how is not None
    assert how.corrections == ("batch-norm", "tune")


def test_learned_weights_are_better_than_gptq_and_gptq_than_nearest(allocate: Any, tmp_path: Path) -> None:
    losses = []
    for method in ("nearest", "gptq", "brecq"):
        few = ("--iterations", "500") if method == "brecq" else ()
        outcome = allocate(
            "--budget", "2.1b", "--unit", "layer", "--options", "w2", "--samples", "256", "--json",
            "--method", method, *few, "--out", tmp_path / method,
        )  # fmt: skip
        assert outcome.code == 0, outcome
        losses.append(outcome.json["plan"]["measured"]["loss"])
    assert losses[1] < losses[0] / 5
    assert losses[2] < losses[1]


def test_what_was_chosen_of_learned_rounding_is_used_and_stated(
    allocate: Any, fast: tuple[str, ...], packed: Any, tmp_path: Path
) -> None:
    common = ("--budget", "2.6b", *fast, "--unit", "layer", "--method", "brecq", "--iterations", "20")
    chosen = ("--granularity", "stage", "--block-loss", "fisher", "--drop", "0.5")
    outcome = allocate(*common, *chosen, "--out", tmp_path / "chosen")
    assert outcome.code == 0, outcome
    how = apportion.read_plan(tmp_path / "chosen" / "plan.json").reconstruction
    assert how is not None
    assert how.choices == {"iterations": 20, "granularity": "stage", "block_loss": "fisher", "drop": 0.5}
    shown = "weights by brecq (iterations 20, granularity stage, block loss fisher, drop 0.5)"
    assert shown in " ".join(outcome.out.split())

    assert allocate(*common, "--out", tmp_path / "plain").code == 0
    assert packed(tmp_path / "plain") != packed(tmp_path / "chosen")


def test_auto_says_what_it_compared(allocate: Any, fast: tuple[str, ...], tmp_path: Path) -> None:
    outcome = allocate("--budget", "3b", *fast, "--iterations", "50", "--out", tmp_path / "run")
    assert outcome.code == 0, outcome
    how = apportion.read_plan(tmp_path / "run" / "plan.json").reconstruction
    assert how is not None
    assert list(how.compared)[:2] == ["nearest", "gptq"]
    assert how.method in how.compared
    for name in how.compared:
        assert f"{name}: loss" in outcome.err
    assert f"weights by {how.method}, the cheapest near the best" in " ".join(outcome.out.split())


def test_a_killed_run_goes_on_to_the_same_weights(allocate: Any, packed: Any, tmp_path: Path) -> None:
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    process = subprocess.Popen(
        [sys.executable, "-m", "apportion", *LEARNED, "--out", str(cut)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip

    def learned() -> list[Path]:
        # Units of learned rounding come after those of GPTQ, in a folder of their own.
        folders = sorted((cut / "weights.parts").glob("*"), key=lambda path: path.stat().st_mtime)
        return [] if len(folders) < 2 else sorted(folders[-1].glob("*.safetensors"))

    deadline = time.monotonic() + PATIENCE_S
    while len(learned()) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.communicate(timeout=PATIENCE_S)
    assert not (cut / "plan.json").exists()
    assert len(learned()) >= 3

    assert allocate(*LEARNED, "--out", cut).code == 0
    assert not (cut / "weights.parts").exists()
    assert allocate(*LEARNED, "--out", whole).code == 0
    assert packed(cut) == packed(whole)


@pytest.mark.parametrize(
    ("arguments", "after"),
    [
        (("--method", "brecq"), "gptq"),
        (("--method", "adaround"), "gptq"),
        (("--method", "brecq", "--after", "nearest"), "nearest"),
        (("--method", "gptq"), "gptq"),
        (("--max-drop", "0.1kl"), "gptq"),
        (("--method", "nearest"), "nearest"),
        (("--method", "lapq"), "nearest"),
    ],
)
def test_plans_are_scored_after_gptq_where_the_method_goes_on_from_it(
    allocate: Any, tmp_path: Path, arguments: tuple[str, ...], after: str
) -> None:
    few = ("--unit", "layer", "--samples", "16", "--options", "w2,w8")
    few += () if "--max-drop" in arguments else ("--budget", "4.5b")
    iterations = ("--iterations", "2") if {"brecq", "adaround"} & set(arguments) else ()
    assert allocate(*few, *arguments, *iterations, "--out", tmp_path / "run").code == 0
    (path,) = (tmp_path / "run").glob("profile*.json")
    assert apportion.read_profile(path)[0].after == after


def test_scores_after_gptq_are_another_profile_beside_that_of_nearest(
    allocate: Any, contents: Any, tmp_path: Path
) -> None:
    run, few = tmp_path / "run", ("--samples", "16", "--options", "w2,w8")
    assert allocate("profile", *few, "--after", "gptq", "--out", run).code == 0
    assert apportion.read_profile(run / "profile-gptq.json")[0].after == "gptq"
    assert "by GPTQ" in allocate("show", run / "profile-gptq.json").out
    # The only one there is what a plan is solved from, and what is shown of the folder.
    assert "by GPTQ" in allocate("show", run).out
    solved = allocate("solve", "--budget", "5b", "--unit", "layer", "--json", "--out", run)
    assert (
        solved.json["plan"]["profile"]
        == apportion.read_profile(run / "profile-gptq.json")[0].fingerprint.text()
    )
    before = contents(run)
    assert allocate("profile", *few, "--after", "nearest", "--out", run).code == 0
    assert apportion.read_profile(run / "profile.json")[0].after == "nearest"
    assert before.items() <= contents(run).items()
    again = allocate("solve", "--budget", "5b", "--unit", "layer", "--force", "--out", run)
    assert "profile-gptq.json takes those" in " ".join(again.err.split())


def test_any_method_goes_on_in_the_folder_of_a_profile(allocate: Any, tmp_path: Path) -> None:
    few = ("--samples", "16", "--options", "w2,w8", "--out", tmp_path / "run")
    assert allocate("profile", *few).code == 0
    for job in ("frontier", "--count", "2"), ("--budget", "5b", "--method", "gptq"):
        assert allocate(*job, *few).code == 0
    assert {path.name for path in (tmp_path / "run").glob("profile*.json")} == {
        "profile.json",
        "profile-gptq.json",
    }


@pytest.mark.parametrize("after", ["adaquant", "brecq"])
def test_scores_may_be_of_what_a_dear_method_makes(allocate: Any, tmp_path: Path, after: str) -> None:
    few = ("--samples", "16", "--options", "w2,w4")
    assert allocate("profile", *few, "--after", after, "--out", tmp_path / after).code == 0
    profile = apportion.read_profile(tmp_path / after / f"profile-{after}.json")[0]
    assert profile.after == after


def test_plans_by_two_kinds_of_scores_compete_and_the_better_is_kept(
    allocate: Any, fast: tuple[str, ...], tmp_path: Path
) -> None:
    common = ("--budget", "2.6b", *fast, "--unit", "layer", "--method", "gptq", "--json")
    outcome = allocate(*common, "--after", "auto", "--out", tmp_path / "auto")
    assert outcome.code == 0, outcome
    plan = apportion.read_plan(tmp_path / "auto" / "plan.json")
    assert plan.reconstruction is not None
    scores = plan.reconstruction.scores
    assert list(scores) == ["nearest", "gptq"]
    profiles = [apportion.read_profile(tmp_path / "auto" / f"profile{end}.json")[0] for end in ("", "-gptq")]
    assert [profile.after for profile in profiles] == list(scores)
    better = min(profiles, key=lambda profile: scores[profile.after])
    assert plan.profile == better.fingerprint.text()
    assert "least loss by kind: nearest" in " ".join(allocate("show", tmp_path / "auto").out.split())
    for profile in profiles:
        alone = allocate(*common, "--after", profile.after, "--out", tmp_path / profile.after).json
        assert alone["plan"]["profile"] == profile.fingerprint.text()


def test_moves_say_which_kind_of_scores_they_refine(
    allocate: Any, fast: tuple[str, ...], tmp_path: Path
) -> None:
    outcome = allocate("--budget", "3b", *fast, "--unit", "layer", "--refine", "1", "--out", tmp_path / "run")
    assert outcome.code == 0, outcome
    moves = [line.split(":")[0] for line in outcome.err.splitlines() if line.startswith("refine ")]
    assert moves == ["refine by nearest scores 1/1", "refine by gptq scores 1/1"]


def test_by_default_both_kinds_of_scores_compete(
    allocate: Any, fast: tuple[str, ...], tmp_path: Path
) -> None:
    outcome = allocate("--budget", "4b", *fast, "--unit", "layer", "--json", "--out", tmp_path / "run")
    assert outcome.code == 0, outcome
    assert list(outcome.json["plan"]["reconstruction"]["scores"]) == ["nearest", "gptq"]


def test_a_plan_is_finalized_by_the_method_asked_for(allocate: Any, finished: Path) -> None:
    outcome = allocate(
        "finalize", "--force", "--samples", "64", "--method", "gptq", "--json", "--out", finished
    )
    assert outcome.code == 0, outcome
    assert outcome.json["plan"]["reconstruction"]["method"] == "gptq"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--budget", "4b", "--method", "gptq", "--iterations", "9"), "--method gptq has none"),
        (("--budget", "4b", "--method", "guess"), "--method"),
        (("--budget", "4b", "--iterations", "0"), "--iterations"),
        (("profile", "--until-stable", "--after", "gptq"), "leave one of the two out"),
        (("frontier", "--method", "nearest", "--iterations", "9"), "--method nearest has none"),
        (("--budget", "4b", "--method", "gptq", "--drop", "0.5"), "give --method brecq or adaround"),
        (("--budget", "4b", "--method", "adaround", "--granularity", "block"), "learned for several layers"),
        (("finalize", "plan.json"), "allocate finalize takes files as --plan,"),
        (("--lossless", "--after", "auto"), "takes one kind of scores"),
        (("profile", "--after", "auto"), "--after"),
        (("finalize", "--method", "lapq", "--block-loss", "fisher"), "--method lapq has none"),
        (("--budget", "4b", "--method", "brecq", "--drop", "1.5"), "--drop"),
        (("--budget", "4b", "--method", "brecq", "--granularity", "pixel"), "--granularity"),
    ],
)
def test_what_cannot_be_is_refused(
    refused: Any, tmp_path: Path, arguments: tuple[str, ...], reason: str
) -> None:
    assert reason in refused(*arguments, "--out", tmp_path / "run")
