"""The table of times is the one that budgets read."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest


def test_times_are_written_as_the_table_that_budgets_read(
    allocate: Any, profiled: Path, tmp_path: Path
) -> None:
    table = tmp_path / "latency.csv"
    outcome = allocate("latency", "--options", "w2,w4,w8", "--repeats", "3", "--output", table, "--json")
    assert outcome.code == 0, outcome
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [(row["layer"], row["option"]) for row in rows] == [
        (entry["layer"], entry["option"]) for entry in outcome.json["latencies"]
    ]
    most = round(sum(float(row["cost"]) for row in rows), 3)
    solved = allocate(
        "solve", "--table", f"latency={table}", "--budget", f"latency={most}", "--out", profiled, "--json"
    )
    assert solved.code == 0, solved
    assert solved.json["plan"]["complexity"]["costs"]["latency"] <= most
    assert set(solved.json["plan"]["tables"]["latency"]["stem"]) == {"w2", "w4", "w8"}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--output", "times.json"), "written as .csv"),
        (("--output", "there.csv"), "is there already"),
        (("--options", "w99"), "codes have 1 to 8 bits"),
        (("--repeats", "1"), "--repeats"),
        (("--model", "net.pt2"), "needs calibration data"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_timed(
    refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], reason: str
) -> None:
    (tmp_path / "there.csv").write_text("mine")
    monkeypatch.chdir(tmp_path)
    assert reason in refused("latency", *arguments)
