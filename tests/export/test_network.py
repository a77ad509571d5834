"""A saved network comes back as one that can be called, without the code that defined it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import apportion
from apportion.allocator import Plan
from apportion.errors import InputError
from apportion.export import PROGRAM, WEIGHTS, load, save_network
from apportion.network import Data, Network, capture
from apportion.quantizer import parse_options
from apportion.reconstruct import (
    AdaQuant,
    Gptq,
    LearnedRounding,
    Learning,
    Method,
    correct_biases,
    finalize_nearest,
    measure_finalized,
)
from apportion.sensitivity import measure_profile, solve_plan


@pytest.fixture
def saved(network: Network, plan: Plan, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    save_network(folder, network, plan, finalize_nearest(network, plan))
    return folder


class Volumes(nn.Module):
    """Convolutions over three axes: plain, strided in groups, and depthwise."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.plain = nn.Conv3d(1, 8, 3, padding=1)
        self.strided = nn.Conv3d(8, 16, (1, 3, 2), stride=(1, 2, 1), padding=(0, 1, 0), groups=2)
        self.depthwise = nn.Conv3d(16, 16, 3, padding="same", groups=16, dilation=(1, 2, 1))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.strided(self.plain(x).relu()).relu()).relu()
        return 3 * self.head(x.amax((2, 3, 4)))


@pytest.mark.parametrize(
    "method",
    [Gptq(), AdaQuant(), LearnedRounding(learning=Learning(iterations=100, batch=16))],
    ids=["gptq", "adaquant", "brecq"],
)
def test_convolutions_of_volumes_are_scored_rounded_and_exported(method: Method, tmp_path: Path) -> None:
    inputs = torch.randn(32, 1, 5, 6, 6, generator=torch.Generator().manual_seed(0))
    volumes = Data(inputs, None, "volumes")
    network = capture(Volumes().eval(), inputs)
    assert [layer.name for layer in network.layers] == ["plain", "strided", "depthwise", "head"]
    profile, arrays = measure_profile(network, volumes, parse_options("w2..4"))
    plan = solve_plan(profile, arrays, "4b", "channel")
    finalized = method.finalize(network, plan, volumes)
    loss = measure_finalized(network, finalized, volumes).loss
    assert loss < measure_finalized(network, finalize_nearest(network, plan), volumes).loss
    save_network(tmp_path, network, plan, finalized)
    with torch.inference_mode():
        expected = network.run(inputs, tensors=finalized.tensors(network))
        assert torch.equal(load(tmp_path).run(inputs), expected)
    # Refused if onnxruntime computed something else.
    apportion.export_onnx(tmp_path, tmp_path / "net.onnx")


def test_a_loaded_network_computes_exactly_what_the_finalized_one_does(
    network: Network, data: Data, plan: Plan, tmp_path: Path
) -> None:
    finalized = correct_biases(network, data, finalize_nearest(network, plan))
    save_network(tmp_path, network, plan, finalized)
    loaded = apportion.load(tmp_path)
    with torch.inference_mode():
        expected = network.run(data.inputs, tensors=finalized.tensors(network))
        assert torch.equal(loaded(data.inputs), expected)
        # Any number of samples.
        torch.testing.assert_close(loaded(data.inputs[:1]), expected[:1], rtol=1e-4, atol=1e-4)
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in network.layers]


class Product(nn.Module):
    """Tokens times a weight that is stored with its inputs first, in half the precision."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(12, 5))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_transposed_weights_in_other_floats_come_back(tmp_path: Path, dtype: torch.dtype) -> None:
    inputs = torch.randn(8, 3, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
    network = capture(Product().to(dtype), inputs)
    profile, arrays = measure_profile(network, Data(inputs, None, "normal"), parse_options("w3"))
    plan = solve_plan(profile, arrays, "20b", "layer")
    finalized = finalize_nearest(network, plan)
    save_network(tmp_path, network, plan, finalized)
    loaded = load(str(tmp_path))
    with torch.inference_mode():
        assert torch.equal(loaded(inputs), network.run(inputs, tensors=finalized.tensors(network)))


def test_loading_needs_no_code_of_the_user(saved: Path, network: Network, data: Data) -> None:
    inputs = saved / "inputs.pt"
    torch.save(data.inputs[:2], inputs)
    program = (
        "import sys, torch, apportion; "
        "print(tuple(apportion.load(sys.argv[1])(torch.load(sys.argv[2], weights_only=True)).shape)); "
        "assert 'apportion.demo' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(saved), str(inputs)],
        cwd=saved,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(2, 10)"


@pytest.mark.parametrize("name", [WEIGHTS, PROGRAM])
def test_a_missing_file_is_refused_by_name(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        load(saved)


@pytest.mark.parametrize("name", [WEIGHTS, PROGRAM])
def test_a_truncated_file_is_refused_by_name(saved: Path, name: str) -> None:
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        load(saved)


def test_files_of_two_networks_are_refused(saved: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    inputs = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    network = capture(Product(), inputs)
    profile, arrays = measure_profile(network, Data(inputs, None, "normal"), parse_options("w3"))
    plan = solve_plan(profile, arrays, "20b", "layer")
    save_network(other, network, plan, finalize_nearest(network, plan))
    (other / PROGRAM).write_bytes((saved / PROGRAM).read_bytes())
    with pytest.raises(InputError, match=r"program .*program\.json"):
        load(other)


def test_nothing_is_written_where_the_folder_cannot_be(network: Network, plan: Plan, tmp_path: Path) -> None:
    blocked = tmp_path / "run"
    blocked.write_text("a file", encoding="utf-8")
    with pytest.raises(InputError, match="cannot write"):
        save_network(blocked, network, plan, finalize_nearest(network, plan))
    assert blocked.read_text(encoding="utf-8") == "a file"
