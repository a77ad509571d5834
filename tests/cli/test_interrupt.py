"""Ctrl-C: nothing half-written, and the same command goes on from what is complete."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apportion.cli.console import Reporter
from apportion.cli.main import no_interrupt_lost

DEEP_NET = """
import torch
from torch import nn


def deep():
    torch.manual_seed(0)
    hidden = [part for _ in range(24) for part in (nn.Linear(128, 128), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(128, 10))
"""
# So little memory that every layer is a segment of its own, whose sums are kept as soon as they are complete.
SETTINGS = ("--options", "w2..8", "--memory", "1MiB")
PATIENCE_S = 60


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """Profile a network of 25 layers; takes a few seconds in many small parts."""
    (tmp_path / "nets.py").write_text(DEEP_NET)
    inputs = np.random.default_rng(0).normal(size=(256, 128)).astype(np.float32)
    np.savez(tmp_path / "data.npz", inputs=inputs)
    return ["--model", f"{tmp_path / 'nets.py'}:deep", "--data", str(tmp_path / "data.npz"), *SETTINGS]


def sums(out: Path) -> int:
    """Number of segments whose sums are kept."""
    return len(list((out / "profile.parts").glob("segment-*-sums.safetensors")))


def wait_for_sums(out: Path, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while sums(out) < count and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)


def test_an_interrupted_run_leaves_only_whole_parts_and_goes_on_to_the_same_scores(
    allocate: Any, command: list[str], contents: Any, tmp_path: Path
) -> None:
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    process = subprocess.Popen(
        [sys.executable, "-m", "apportion", "--budget", "4b", *command, "--out", str(cut)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    wait_for_sums(cut, 2, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1, err
    assert out == ""
    assert err.startswith("error: interrupted")
    assert "Traceback" not in err
    left = sorted(path.name for path in cut.rglob("*") if path.is_file())
    assert all(name.startswith("segment-") for name in left)
    assert 2 <= sums(cut) < 25

    assert allocate("profile", *command, "--out", cut).code == 0
    assert allocate("profile", *command, "--out", whole).code == 0
    assert not (cut / "profile.parts").exists()
    assert contents(cut)["profile.safetensors"] == contents(whole)["profile.safetensors"]


def test_what_was_complete_when_interrupted_is_not_measured_again(
    allocate: Any, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    out = tmp_path / "run"

    @contextlib.contextmanager
    def stage(self: Reporter, name: str) -> Iterator[Any]:
        told.clear()
        kept_before = sums(out)
        yield lambda done, total: step(done, kept_before)

    def step(done: int, kept_before: int) -> None:
        told.append(done)
        if kept_before == 0 and sums(out) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Reporter, "stage", stage)
    stopped = allocate("profile", *command, "--out", out)
    assert stopped.code == 1
    assert "interrupted" in stopped.err
    assert sums(out) == 2
    first_of_all = told[0]
    assert allocate("profile", *command, "--out", out).code == 0
    assert told[0] > first_of_all


def test_an_interrupt_that_python_drops_comes_again() -> None:
    """One that comes while an object is given back is raised in a callback, whose errors are printed only."""

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    def work() -> None:
        given_back = Reporter()
        watched = weakref.ref(given_back, interrupted)
        with no_interrupt_lost():
            del given_back
            for _ in range(10 * PATIENCE_S):
                time.sleep(0.1)
        assert watched() is None

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            work()
    finally:
        signal.signal(signal.SIGINT, before)
