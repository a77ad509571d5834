"""`allocate profile --until-stable`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from apportion.sensitivity import read_profile

ARGUMENTS = ("profile", "--until-stable", "--samples", "256", "--options", "w2,w4,w8", "--budget", "4b")


def test_rounds_are_told_and_the_profile_is_used_again(allocate: Any, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "run")
    first = allocate(*ARGUMENTS, *out)
    assert first.code == 0
    assert "128 samples: the plans of before lose" in first.err
    profile, _ = read_profile(tmp_path / "run" / "profile.json")
    found = profile.stability
    assert found is not None
    assert found.budgets == ("4b",)
    assert found.rounds[-1].samples == profile.samples <= 256
    assert found.stable or profile.samples == 256
    again = allocate(*ARGUMENTS, *out)
    assert again.code == 0
    assert "fits and is used again" in again.err
    assert allocate("solve", "--budget", "4b", *out).code == 0


def test_it_goes_on_from_a_profile_of_fewer_samples(allocate: Any, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "run")
    assert allocate("profile", "--samples", "64", "--options", "w2,w4,w8", *out).code == 0
    outcome = allocate(*ARGUMENTS, *out)
    assert outcome.code == 0
    assert "going on from the 64 samples" in outcome.err
    assert read_profile(tmp_path / "run" / "profile.json")[0].samples >= 128


def test_a_budget_goes_with_rounds_alone(refused: Any, tmp_path: Path) -> None:
    message = refused("profile", "--budget", "4b", "--out", tmp_path / "run")
    assert "--budget 4b says at which size plans are compared, and goes with --until-stable" in message
    assert "leave --scores exact out" in refused(*ARGUMENTS, "--scores", "exact", "--out", tmp_path / "run")
