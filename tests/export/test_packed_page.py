"""The page on the packed format is enough to read it, and reading needs no solver."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apportion.allocator import Plan
from apportion.export import load_state, save_network
from apportion.network import Data, Network
from apportion.quantizer import parse_options
from apportion.reconstruct import finalize_nearest
from apportion.sensitivity import FisherSettings, measure_profile, solve_plan

from .conftest import rewrite_file

Assign = Callable[[Mapping[str, Sequence[str]]], Plan]
PAGE = Path(__file__).parents[2] / "docs" / "packed-format.md"


@pytest.fixture(scope="module")
def reader() -> Callable[[Path], dict[str, Any]]:
    """The reader that the page gives."""
    (code,) = re.findall(r"```python\n(.+?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "packed-format.md", "exec"), names)
    return names["read"]  # type: ignore[no-any-return]


def check_same(reader: Callable[[Path], dict[str, Any]], folder: Path) -> None:
    found, expected = reader(folder / "weights.safetensors"), load_state(folder)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        # The page sums points in double precision.
        np.testing.assert_allclose(found[name], tensor.numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [["w3", "w2x2", "w8"], ["w1x2", "w3"], ["w4t"], ["w3g16"], ["w2x2"]])
def test_the_page_reads_mixed_channels_groups_and_points(
    reader: Any, network: Network, assign: Assign, tmp_path: Path, options: list[str]
) -> None:
    plan = assign(
        {
            layer.name: tuple(islice(cycle(options), layer.channels))
            for layer in network.layers
            if layer.fan_in >= 16
        }
    )
    save_network(tmp_path, network, plan, finalize_nearest(network, plan))
    check_same(reader, tmp_path)


def test_the_page_reads_strips_of_inputs(reader: Any, network: Network, data: Data, tmp_path: Path) -> None:
    few = Data(data.inputs[:4], None, data.name)
    settings = FisherSettings(cut="inputs:8")
    profile, arrays = measure_profile(network, few, parse_options("w3,w8"), settings=settings)
    plan = solve_plan(profile, arrays, "5b", "inputs:8")
    assert any(layer.strips for layer in plan.layers)
    save_network(tmp_path, network, plan, finalize_nearest(network, plan))
    check_same(reader, tmp_path)


def test_the_page_reads_steps_of_small_weights(
    reader: Any, network: Network, assign: Assign, tmp_path: Path
) -> None:
    scaled = {layer.weight: network.tensors[layer.weight] * 1e-3 for layer in network.layers}
    small = network.replace(scaled)
    plan = assign({layer.name: ("w8",) * layer.channels for layer in network.layers})
    save_network(tmp_path, small, plan, finalize_nearest(small, plan))
    found, expected = reader(tmp_path / "weights.safetensors"), load_state(tmp_path)
    for name in scaled:
        # Steps are far below the least half-precision number; float32 holds 2^-24 of each weight.
        np.testing.assert_allclose(found[name], expected[name].numpy(), rtol=1e-6, atol=0)


def test_the_page_refuses_what_is_not_as_it_was_written(
    reader: Any, network: Network, plan: Plan, tmp_path: Path
) -> None:
    save_network(tmp_path, network, plan, finalize_nearest(network, plan))
    path = tmp_path / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is damaged"):
        reader(path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t, m: t.pop("=stem.bias"), "=stem.bias"),
        (lambda t, m: t.update({"=more": torch.zeros(3)}), "=more"),
        (lambda t, m: t.update({"=stem.bias": t["=stem.bias"][:, None]}), "=stem.bias"),
        (lambda t, m: m.update(apportion=m["apportion"].replace('0":-', '0":-1', 1)), "its header"),
    ],
)
def test_the_page_refuses_tensors_and_a_header_that_were_not_written(
    reader: Any,
    network: Network,
    plan: Plan,
    tmp_path: Path,
    change: Callable[[dict[str, Any], dict[str, str]], object],
    named: str,
) -> None:
    save_network(tmp_path, network, plan, finalize_nearest(network, plan))
    path = tmp_path / "weights.safetensors"
    rewrite_file(path, change)
    with pytest.raises(ValueError, match=f"is damaged: {named}"):
        reader(path)


def test_a_run_is_loaded_where_no_solver_is_installed(network: Network, plan: Plan, tmp_path: Path) -> None:
    save_network(tmp_path, network, plan, finalize_nearest(network, plan))
    program = (
        "import sys\n"
        "for name in ('cvxpy', 'scipy', 'highspy', 'onnx', 'onnxscript', 'onnxruntime'):\n"
        "    sys.modules[name] = None\n"
        "import apportion\n"
        "print(len(apportion.load(sys.argv[1]).layers))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(len(network.layers))
