"""The command run in this process, finished runs to start from, and networks and data as users give them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from safetensors import safe_open

from apportion.allocator import ParetoData
from apportion.cli import main

FAST = ("--samples", "64", "--options", "w2,w4,w8")
"""Arguments that make the embedded digits a matter of a second."""

FACTORIES = """
import torch
from torch import nn


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5))


def typed(kind):
    return small().to(getattr(torch, kind))


def without_layers():
    return nn.Sequential(nn.ReLU(), nn.Flatten())


def failing():
    raise RuntimeError("the disk of the author is full")


def with_nan():
    module = small()
    module[3].weight.data[2, 7] = float("nan")
    return module


def huge():
    module = small()
    module[0].weight.data *= 1e38
    module[3].weight.data *= 1e38
    return module


class Overflowing(nn.Module):
    # Its output is small, but the gradients on the way back to the convolution are not.
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, bias=False)
        self.head = nn.Linear(288, 5)

    def forward(self, x):
        y = self.stem(x).relu().flatten(1) * 1e-40
        return 8 * self.head(y)


def overflowing():
    torch.manual_seed(0)
    module = Overflowing()
    module.head.weight.data.sign_().mul_(3e38)
    return module


def not_a_module():
    return 7


def growing():
    torch.manual_seed(0)
    return nn.Sequential(nn.ConvTranspose2d(1, 4, 3), nn.Flatten(), nn.Linear(400, 5))
"""


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object on standard output."""
        return json.loads(self.out)


def run(*arguments: object) -> Outcome:
    """Run ``allocate`` with these arguments in this process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as stopped,
    ):
        main([str(argument) for argument in arguments])
    code = stopped.value.code
    assert isinstance(code, int)
    return Outcome(code, out.getvalue(), err.getvalue())


def contents(folder: Path) -> dict[str, str]:
    """Every path below a folder, with the SHA-256 of files."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


def packed(folder: Path) -> dict[str, Any]:
    """Tensors and metadata of the packed weights; their order in the file says nothing."""
    with safe_open(folder / "weights.safetensors", framework="np") as file:
        tensors = {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
        return tensors | file.metadata()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def allocate() -> Callable[..., Outcome]:
    return run


@pytest.fixture(scope="session")
def fast() -> tuple[str, ...]:
    return FAST


@pytest.fixture(scope="session", name="contents")
def contents_fixture() -> Callable[[Path], dict[str, str]]:
    return contents


@pytest.fixture(scope="session", name="packed")
def packed_fixture() -> Callable[[Path], dict[str, Any]]:
    return packed


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    """Run a command that must be refused: it leaves all as it was, and says why in one paragraph."""

    def check(*arguments: object) -> str:
        before = contents(tmp_path)
        outcome = run(*arguments)
        assert outcome.code == 2, outcome
        assert outcome.out == ""
        assert contents(tmp_path) == before
        message = outcome.err.strip()
        assert message.startswith("error: ")
        assert "\n" not in message
        assert "Traceback" not in message
        return message

    return check


@pytest.fixture
def plotted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], ParetoData]:
    """Draw the charts of a run again: the numbers of its Pareto chart."""

    def plot(folder: Path) -> ParetoData:
        drawn: list[ParetoData] = []

        def draw(data: ParetoData) -> Figure:
            drawn.append(data)
            return Figure()

        monkeypatch.setattr("apportion.cli.charts.draw_pareto", draw)
        outcome = run("plot", folder)
        assert outcome.code == 0, outcome
        return drawn[0]

    return plot


@pytest.fixture(scope="session")
def _whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    outcome = run("--budget", "4b", "--unit", "channel", "--after", "nearest", "--out", folder, *FAST)
    assert outcome.code == 0, outcome
    return folder


@pytest.fixture
def finished(_whole_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run over the digits: ``--budget 4b --unit channel --after nearest``."""
    return Path(shutil.copytree(_whole_run, tmp_path / "run"))


@pytest.fixture
def profiled(_whole_run: Path, tmp_path: Path) -> Path:
    """A folder that holds only the profile of the digits."""
    folder = tmp_path / "profiled"
    folder.mkdir()
    for name in ("profile.json", "profile.safetensors"):
        shutil.copy(_whole_run / name, folder)
    return folder


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    """A file of factories, as a user writes it."""
    path = tmp_path / "nets.py"
    path.write_text(FACTORIES)
    return path


@pytest.fixture
def save_inputs(tmp_path: Path) -> Callable[..., Path]:
    """Write a .npz file of inputs; by default 16 random ones that the small network takes."""

    def save(inputs: Any = None, name: str = "inputs.npz", **arrays: Any) -> Path:
        if inputs is None:
            inputs = np.random.default_rng(0).normal(size=(16, 1, 8, 8)).astype(np.float32)
        np.savez(tmp_path / name, inputs=inputs, **arrays)
        return tmp_path / name

    return save
