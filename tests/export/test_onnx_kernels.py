"""Linear layers run on onnxruntime's low-bit kernels and compute what the packed network does, nearly."""

from __future__ import annotations

from collections import Counter
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from apportion.allocator import LayerPlan, Plan
from apportion.export import export_onnx, load, save_network
from apportion.network import Network, capture
from apportion.reconstruct import finalize_nearest

# Relative to the largest output: inputs of 8 bits in every layer, and another order of summation.
NEAR, SAME = 0.05, 1e-5


class Net(nn.Module):
    """A convolution, matrices before tokens and after them, one with its inputs first, and one used twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv1d(4, 48, 4)
        self.wide = nn.Linear(48, 64)
        self.turned = nn.Parameter(torch.randn(64, 40) / 8)
        self.twice = nn.Linear(40, 40, bias=False)
        self.head = nn.Linear(40, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(self.conv(x).transpose(1, 2)).relu()
        x = self.twice(self.twice(x @ self.turned).relu())
        return self.head(x.mean(1))


INPUTS = torch.randn(5, 4, 12, generator=torch.Generator().manual_seed(0))
PRODUCTS = {"wide", "turned", "head"}


@pytest.fixture(scope="module")
def small() -> Network:
    return capture(Net(), INPUTS)


def saved(folder: Path, network: Network, plan: Plan, options: list[str], unit: str = "channel") -> None:
    """A run whose layers' channels take these options in turn."""
    layers = tuple(
        LayerPlan.from_strips(
            layer.name,
            (layer.channels, layer.fan_in) if layer.transposed else layer.shape,
            list(islice(cycle(options), layer.channels)),
            size_bits=1,
            predicted_loss=0.0,
            mean_bits=1.0,
        )
        for layer in network.layers
    )
    planned = plan.model_copy(update={"layers": layers, "options": tuple(sorted(set(options))), "unit": unit})
    save_network(folder, network, planned, finalize_nearest(network, planned))


def kernels_run(path: Path, folder: Path) -> Counter[str]:
    """Operators of the graph that onnxruntime runs."""
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = str(folder / "optimized.onnx")
    settings.log_severity_level = 3
    onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def check_near(folder: Path, path: Path, tolerance: float = NEAR) -> None:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    network = load(folder)
    for samples in (1, len(INPUTS)):
        with torch.inference_mode():
            expected = network(INPUTS[:samples]).numpy()
        found = session.run(["output"], {session.get_inputs()[0].name: INPUTS[:samples].numpy()})[0]
        assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()


@pytest.mark.parametrize(
    ("options", "products"),
    [
        (["w4"], 1),
        (["w8"], 1),
        (["w1x2"], 2),
        (["w2"], 1),
        (["w2x2"], 2),
        (["w4t"], 1),
        (["w4g16"], 1),
        (["w3", "w4", "w8"], 2),
    ],
)
def test_matrices_are_multiplied_by_low_bit_kernels(
    small: Network, plan: Plan, tmp_path: Path, options: list[str], products: int
) -> None:
    saved(tmp_path, small, plan, options)
    path = tmp_path / "net.onnx"
    export_onnx(tmp_path, path, kernels="integer")
    onnx.checker.check_model(path, full_check=True)
    check_near(tmp_path, path)
    run = kernels_run(path, tmp_path)
    assert run["MatMulNBits"] == products * len(PRODUCTS)
    # The convolution, and the matrix that is used twice, stay as they are.
    assert run["DequantizeLinear"] > 0


def test_weights_for_kernels_take_the_planned_space_where_widths_agree(
    small: Network, plan: Plan, tmp_path: Path
) -> None:
    saved(tmp_path, small, plan, ["w4g16"])
    written = export_onnx(tmp_path, tmp_path / "net.onnx", kernels="integer")
    for layer in written.layers:
        if layer.name in ("wide", "turned"):
            channels, fan_in = {"wide": (64, 48), "turned": (40, 64)}[layer.name]
            assert layer.stored_bits == 4 * channels * fan_in + 16 * channels * fan_in // 16


def test_groups_that_no_kernel_has_keep_float_products(small: Network, plan: Plan, tmp_path: Path) -> None:
    saved(tmp_path, small, plan, ["w4g10"])
    export_onnx(tmp_path, tmp_path / "net.onnx", kernels="integer")
    assert kernels_run(tmp_path / "net.onnx", tmp_path)["MatMulNBits"] == 0
    check_near(tmp_path, tmp_path / "net.onnx")


@pytest.mark.parametrize(
    "options", [["w1"], ["w1x3"], ["w2"], ["w4"], ["w8"], ["w5"], ["w4g16"], ["w2x2", "w8"]]
)
def test_float_products_with_matrices_are_the_same(
    small: Network, plan: Plan, tmp_path: Path, options: list[str]
) -> None:
    """Here onnxruntime moves transpositions past DequantizeLinear, which it does by the type of the codes."""
    saved(tmp_path, small, plan, options)
    export_onnx(tmp_path, tmp_path / "net.onnx")
    check_near(tmp_path, tmp_path / "net.onnx", SAME)
