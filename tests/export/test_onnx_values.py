"""Values in low bits on disk and in ONNX: the loaded network, its module and onnxruntime compute the same."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import apportion
from apportion.allocator import Constraints
from apportion.export import save_network
from apportion.network import Data, Network, capture
from apportion.quantizer import parse_option_set
from apportion.reconstruct import Finalized, finalize_nearest
from apportion.sensitivity import ActivationSettings, measure_profile, solve_plan

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


class Mixed(nn.Module):
    """A convolution that reads what may be negative, one that reads a relu, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.head(nn.functional.gelu(self.second(x) + x).mean((2, 3)))


class Plain(nn.Module):
    """Linear layers alone, since onnxruntime has no convolution in double precision."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).tanh()).mean((1, 2))


class Einsum(nn.Module):
    """Attention of two heads whose products are written as einsum."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.first(x.flatten(1, 2)).unflatten(-1, (3, 2, 4)).unbind(2)
        shares = torch.einsum("bihd,bjhd->bhij", q, k).softmax(-1)
        return self.head(self.second(torch.einsum("bhij,bjhd->bihd", shares, v).flatten(2)).mean(1))


INPUTS = torch.randn(24, 2, 8, 8, generator=torch.Generator().manual_seed(0))


def saved(
    folder: Path,
    text: str,
    exclude: tuple[str, ...] = (),
    module: type[nn.Module] = Mixed,
    dtype: torch.dtype = torch.float32,
) -> tuple[Network, Finalized]:
    """A finished run whose activations have these options."""
    inputs = INPUTS.to(dtype)
    data, options = Data(inputs, None, "normal"), parse_option_set(text)
    network = capture(module().to(dtype), inputs).without(exclude, "excluded")
    settings = ActivationSettings(options.activations, attention=True)
    profile, arrays = measure_profile(network, data, options.weights, activations=settings)
    constraints = Constraints(exclude=exclude, pin={"second": "w4a3"}) if "a3" in text else None
    plan = solve_plan(profile, arrays, "8.5b", "layer", constraints=constraints)
    finalized = finalize_nearest(network, plan)
    save_network(folder, network, plan, finalized)
    return network, finalized


@pytest.mark.parametrize(
    ("module", "text", "exclude", "expected"),
    [
        (Mixed, "w4a3,w8a8", (), {"QuantizeLinear": 3, "Min": 1}),
        (Mixed, "w4a3,w8a8", ("head",), {"QuantizeLinear": 2, "Min": 1}),
        (Mixed, "w4a8,w4a8d", (), None),
        (Einsum, "w4a8", (), {"QuantizeLinear": 7, "Einsum": 2}),
    ],
)
def test_loaded_exported_and_measured_networks_are_one(
    tmp_path: Path,
    module: type[nn.Module],
    text: str,
    exclude: tuple[str, ...],
    expected: dict[str, int] | None,
) -> None:
    network, finalized = saved(tmp_path, text, exclude, module)
    loaded = apportion.load(tmp_path)
    with torch.inference_mode():
        measured = network.run(INPUTS, tensors=finalized.tensors(network))
        assert torch.equal(loaded(INPUTS), measured)
        assert not torch.allclose(measured, network.run(INPUTS, tensors={}), atol=1e-4)
    program = torch.export.export(
        loaded.graph_module, (INPUTS[:2],), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False
    )
    with torch.inference_mode():
        assert torch.equal(program.module()(INPUTS), measured)
    apportion.export_onnx(tmp_path, tmp_path / "net.onnx")
    nodes = Counter(node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node)
    if expected is not None:
        assert {name: nodes[name] for name in expected} == expected
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    (found,) = session.run(["output"], {session.get_inputs()[0].name: INPUTS.numpy()})
    # A code may become its neighbour where two orders of summation differ in the last digit, in few samples.
    near = (torch.from_numpy(found) - measured).abs().amax(1) < 1e-4
    assert float(near.float().mean()) > 0.8


@pytest.mark.parametrize(
    ("dtype", "module"), [(torch.float16, Mixed), (torch.float16, Plain), (torch.float64, Plain)]
)
def test_values_of_half_and_of_double_precision_are_exported(
    tmp_path: Path, dtype: torch.dtype, module: type[nn.Module]
) -> None:
    network, finalized = saved(tmp_path, "w4a3,w8a8", module=module, dtype=dtype)
    apportion.export_onnx(tmp_path, tmp_path / "net.onnx")
    graph = onnx.load(tmp_path / "net.onnx").graph
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) == 3
    inputs = INPUTS.to(dtype)
    with torch.inference_mode():
        measured = network.run(inputs, tensors=finalized.tensors(network))
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    (found,) = session.run(["output"], {session.get_inputs()[0].name: inputs.numpy()})
    assert found.dtype == measured.numpy().dtype
    # Half rounds before codes do, so that more codes become their neighbours.
    difference = (torch.from_numpy(found) - measured).abs().amax(1)
    assert float(difference.median()) < 1e-2 * float(measured.abs().max())
