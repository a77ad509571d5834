"""The ONNX file of a run computes what the packed network does, at the planned size, or is not written."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import apportion
from apportion.allocator import Plan
from apportion.errors import InputError
from apportion.export import OnnxExport, export_onnx, load, save_network
from apportion.export.onnx_file import filled
from apportion.export.onnx_graph import example_inputs, open_graph
from apportion.network import Data, Network, capture
from apportion.quantizer import parse_options
from apportion.reconstruct import correct_biases, finalize_nearest
from apportion.sensitivity import measure_profile, solve_plan

Assign = Callable[[Mapping[str, Sequence[str]]], Plan]
# What two orders of summation make of logits of single precision, and of half.
AGREEMENT, HALF_AGREEMENT = 1e-4, 1e-3
# The assets' definitions leave their description files to be closed by the interpreter.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


def saved(folder: Path, network: Network, budget: str, options: str, unit: str = "channel") -> Plan:
    """A run over noise; nobody judges it."""
    inputs = tuple(
        torch.randn(2, *given.shape, generator=torch.Generator().manual_seed(0)).to(given.dtype)
        if given.dtype.is_floating_point
        else torch.randint(0, 100, (2, *given.shape), generator=torch.Generator().manual_seed(0))
        for given in network.inputs
    )
    profile, arrays = measure_profile(network, Data(inputs[0], None, "noise"), parse_options(options))
    plan = solve_plan(profile, arrays, budget, unit)
    save_network(folder, network, plan, finalize_nearest(network, plan))
    return plan


def check_agreement(folder: Path, path: Path, inputs: Tensor, tolerance: float = AGREEMENT) -> None:
    """Same outputs for one sample, for two and for all."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    network = load(folder)
    for samples in (1, 2, len(inputs)):
        with torch.inference_mode():
            expected = network(inputs[:samples]).float().numpy()
        found = session.run(["output"], {given.name: inputs[:samples].numpy()})[0]
        assert np.abs(found - expected).max() < tolerance * max(1.0, np.abs(expected).max())


@pytest.fixture
def mixed(network: Network, data: Data, assign: Assign, tmp_path: Path) -> Path:
    """A run whose layers mix options with and without points, with corrected biases."""
    orders = (["w3", "w2x2", "w8"], ["w2", "w2", "w4"], ["w8", "w2"], ["w2x2"])
    plan = assign(
        {
            layer.name: tuple(islice(cycle(orders[index % 4]), layer.channels))
            for index, layer in enumerate(network.layers)
        }
    )
    finalized = correct_biases(network, data, finalize_nearest(network, plan))
    save_network(tmp_path / "run", network, plan, finalized)
    return tmp_path / "run"


def test_a_mixed_network_computes_the_same_for_any_number_of_samples(
    mixed: Path, data: Data, tmp_path: Path
) -> None:
    path = tmp_path / "net.onnx"
    written = apportion.export_onnx(str(mixed), str(path))
    onnx.checker.check_model(path, full_check=True)
    check_agreement(mixed, path, data.inputs)
    assert written.file_bytes == path.stat().st_size
    assert written.difference is not None
    assert written.difference < AGREEMENT
    assert written.relative_difference is not None
    quantized = load(mixed)
    greatest = float(quantized(example_inputs(quantized, 2)).abs().max())
    assert written.relative_difference == pytest.approx(written.difference / greatest)
    model = onnx.load(path)
    assert [value.name for value in model.graph.output] == ["output"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def check_size(written: OnnxExport) -> None:
    """What is stored of the weights is the plan's, or a note says why not."""
    for layer in written.layers:
        assert layer.notes or layer.stored_bits <= 1.02 * layer.planned_bits, layer
    planned = sum(layer.planned_bits for layer in written.layers)
    stored = sum(layer.stored_bits for layer in written.layers)
    rest = written.planned_bytes - planned / 8
    # The exporter makes a few constants of its own.
    assert abs(written.file_bytes - written.graph_bytes - stored / 8 - rest) <= 512


def test_without_its_graph_the_file_has_the_size_of_the_plan(network: Network, tmp_path: Path) -> None:
    saved(tmp_path / "run", network, "5b", "w2,w4,w8", "layer")
    written = export_onnx(tmp_path / "run", tmp_path / "net.onnx")
    check_size(written)
    assert all(layer.notes == () for layer in written.layers)
    assert abs(written.file_bytes - written.graph_bytes - written.planned_bytes) <= 64


def test_strips_of_inputs_and_layers_left_float_are_exported(
    network: Network, data: Data, tmp_path: Path
) -> None:
    from apportion.sensitivity import FisherSettings

    partly = network.without(["stem"], "for a test")
    few = Data(data.inputs[:4], None, data.name)
    profile, arrays = measure_profile(
        partly, few, parse_options("w3,w8"), settings=FisherSettings(cut="inputs:8")
    )
    plan = solve_plan(profile, arrays, "5b", "inputs:8")
    assert any(layer.strips for layer in plan.layers)
    save_network(tmp_path / "run", partly, plan, finalize_nearest(partly, plan))
    written = export_onnx(tmp_path / "run", tmp_path / "net.onnx")
    assert "stem" not in {layer.name for layer in written.layers}
    check_agreement(tmp_path / "run", tmp_path / "net.onnx", data.inputs)


class Product(nn.Module):
    """Two uses of one weight that is stored with its inputs first."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(12, 12))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight).relu() @ self.weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_shared_transposed_weights_of_every_float_type_are_exported(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    inputs = torch.randn(8, 3, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
    saved(tmp_path / "run", capture(Product().to(dtype), inputs), "20b", "w3")
    export_onnx(tmp_path / "run", tmp_path / "net.onnx")
    tolerance = HALF_AGREEMENT if dtype == torch.float16 else AGREEMENT
    check_agreement(tmp_path / "run", tmp_path / "net.onnx", inputs, tolerance)


class Rotated(nn.Module):
    """Pairs of numbers rotated, as complex numbers, by angles that depend on the place."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query, self.head = nn.Linear(8, 8), nn.Linear(8, 5)
        angles = torch.arange(6.0)[:, None] * torch.arange(1.0, 5.0)
        self.register_buffer("turns", torch.polar(torch.ones_like(angles), angles))

    def forward(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(self.query(x).unflatten(-1, (4, 2))) * self.turns
        return self.head(torch.view_as_real(pairs).flatten(-2))


def test_a_network_with_complex_numbers_is_stored_and_exported(tmp_path: Path) -> None:
    inputs = torch.randn(8, 6, 8, generator=torch.Generator().manual_seed(0))
    module = Rotated().eval()
    saved(tmp_path / "run", capture(module, inputs), "8b", "w3,w8")
    assert torch.equal(load(tmp_path / "run").tensors["turns"], module.turns)
    export_onnx(tmp_path / "run", tmp_path / "net.onnx")
    check_agreement(tmp_path / "run", tmp_path / "net.onnx", inputs)


class Typed(nn.Module):
    """Looks up token types as BERT does: a gather of constants, which onnx does not compute ahead."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.types, self.head = nn.Embedding(9, 6), nn.Embedding(2, 6), nn.Linear(6, 3)
        self.register_buffer("kinds", torch.zeros(1, 80, dtype=torch.int64))
        self.register_buffer("places", torch.arange(80)[None])

    def forward(self, ids: Tensor) -> Tensor:
        samples, tokens = ids.shape
        kinds = torch.gather(self.kinds, 1, self.places[:, :tokens]).expand(samples, -1)  # type: ignore[arg-type, index]
        summed = self.words(ids) + self.types(kinds)
        logits: Tensor = self.head(summed).mean(1)
        return logits


def test_nothing_is_said_of_what_the_exporter_leaves_to_be_computed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    network = capture(Typed(), torch.zeros(2, 32, dtype=torch.int64))
    caplog.clear()
    model = open_graph(network)
    assert "GatherElements" in {node.op_type for node in model.graph.node}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


class Choosy(nn.Module):
    """Takes ids from `first` to `first + 3` in its first column, and positive numbers in the others."""

    def __init__(self, first: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.table, self.head = first, nn.Embedding(4, 8), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        found = self.table(x[:, 0].long() - self.first)
        return self.head(torch.cat([found, x[:, 1:].log()], dim=1))


@pytest.mark.parametrize("first", [0, 5])
def test_a_network_that_does_not_take_any_number_is_compared_on_what_it_takes_or_not_at_all(
    tmp_path: Path, first: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(first, first + 4, (8, 1), generator=generator)
    inputs = torch.cat([ids, torch.rand(8, 4, generator=generator) + 0.1], dim=1)
    network = capture(Choosy(first).eval(), inputs)
    profile, arrays = measure_profile(network, Data(inputs, None, "made"), parse_options("w4,w8"))
    plan = solve_plan(profile, arrays, "16b", "layer")
    save_network(tmp_path / "run", network, plan, finalize_nearest(network, plan))
    written = export_onnx(tmp_path / "run", tmp_path / "net.onnx")
    # No made-up number is 5 or more.
    assert (written.difference is None) is (first == 5)
    check_agreement(tmp_path / "run", tmp_path / "net.onnx", inputs)


@pytest.mark.parametrize(
    "name", ["cifar10_resnet20", "mobilenetv1_075_in1k", "vit_tiny_in1k", "babyllama105"]
)
def test_real_networks_compute_the_same(asset_models: Any, name: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    if name == "babyllama105":
        inputs = torch.randint(0, 105, (3, 256), generator=generator)
    else:
        side = 32 if name.startswith("cifar10") else 224
        inputs = torch.randn(3, 3, side, side, generator=generator)
    saved(tmp_path / "run", capture(asset_models.load(name), inputs), "4b", "w3,w5")
    written = export_onnx(tmp_path / "run", tmp_path / "net.onnx")
    check_agreement(tmp_path / "run", tmp_path / "net.onnx", inputs)
    assert written.difference is not None
    assert written.difference < AGREEMENT
    check_size(written)


def test_a_missing_package_is_named_with_its_extra(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match=r'pip install "apportion\[onnx\]"'):
        export_onnx(mixed, tmp_path / "net.onnx")


def test_a_network_in_bfloat16_is_refused(tmp_path: Path) -> None:
    inputs = torch.ones(2, 3, 12, dtype=torch.bfloat16)
    saved(tmp_path / "run", capture(Product().bfloat16(), inputs), "20b", "w3")
    with pytest.raises(InputError, match="bfloat16, which onnxruntime does not"):
        export_onnx(tmp_path / "run", tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()


def test_a_file_that_onnxruntime_cannot_run_is_not_written(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(content: bytes, inputs: tuple[Tensor, ...]) -> np.ndarray:
        raise RuntimeError("no kernel for Attention")

    monkeypatch.setattr("apportion.export.onnx_file.session_outputs", failing)
    with pytest.raises(InputError, match="cannot run the exported network: no kernel for Attention"):
        export_onnx(mixed, tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()


def test_a_graph_that_the_checker_refuses_is_not_written(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any) -> onnx.ModelProto:
        model = filled(*given)
        model.graph.node[-1].op_type = "NoOperator"
        return model

    monkeypatch.setattr("apportion.export.onnx_file.filled", broken)
    with pytest.raises(
        InputError, match=r"no valid ONNX: No Op registered for NoOperator[^\n]*; use --format"
    ):
        export_onnx(mixed, tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()


def test_a_result_that_onnxruntime_gets_wrong_is_not_written(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apportion.export.onnx_file.session_outputs", lambda content, inputs: np.zeros(1))
    with pytest.raises(InputError, match=r"onnxruntime's output differs from PyTorch's by"):
        export_onnx(mixed, tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()


def test_a_run_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read packed weights .*weights\.safetensors"):
        export_onnx(tmp_path, tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()
