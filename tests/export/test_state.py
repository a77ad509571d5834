"""The way back to PyTorch: a module to export and compile again, and plain weights for other code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import apportion
from apportion.allocator import Plan
from apportion.errors import InputError
from apportion.export import export_state, load, load_state, save_network
from apportion.network import Data, Network, capture
from apportion.quantizer import parse_options
from apportion.reconstruct import finalize_nearest
from apportion.sensitivity import measure_profile, solve_plan

# Sums of single precision in another order.
ROUNDING = 1e-4


@pytest.fixture
def saved(network: Network, plan: Plan, tmp_path: Path) -> Path:
    save_network(tmp_path / "run", network, plan, finalize_nearest(network, plan))
    return tmp_path / "run"


def test_a_loaded_network_can_be_exported_again(saved: Path, data: Data, tmp_path: Path) -> None:
    loaded = load(saved)
    batch = {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(loaded.graph_module, (data.inputs[:2],), dynamic_shapes=(batch,))
    torch.export.save(program, tmp_path / "again.pt2")
    again = apportion.load_model(str(tmp_path / "again.pt2"), weights=None, example=data.inputs[:2])
    assert [layer.name for layer in again.layers] == [layer.name for layer in loaded.layers]
    with torch.inference_mode():
        torch.testing.assert_close(again(data.inputs), loaded(data.inputs), rtol=ROUNDING, atol=ROUNDING)


def test_a_loaded_network_can_be_compiled(saved: Path, data: Data) -> None:
    loaded = load(saved)
    # Tracing as by default, without the compiler that the machine may not have.
    compiled = torch.compile(loaded.graph_module, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        found = compiled(data.inputs)
    torch.testing.assert_close(found, loaded(data.inputs), rtol=ROUNDING, atol=ROUNDING)


class Plain(nn.Module):
    """A network in which nothing is folded."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(12, 8), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def test_plain_weights_make_the_users_module_the_quantized_network(tmp_path: Path) -> None:
    inputs = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    network = capture(Plain(), inputs)
    profile, arrays = measure_profile(network, Data(inputs, None, "normal"), parse_options("w2..4"))
    plan = solve_plan(profile, arrays, "9b", "channel")
    save_network(tmp_path / "run", network, plan, finalize_nearest(network, plan))
    module = Plain()
    module.load_state_dict(apportion.load_state(str(tmp_path / "run")))
    with torch.inference_mode():
        expected = load(tmp_path / "run")(inputs)
        torch.testing.assert_close(module(inputs), expected, rtol=ROUNDING, atol=ROUNDING)


def test_the_file_holds_the_same_tensors(saved: Path, tmp_path: Path) -> None:
    written = export_state(saved, tmp_path / "state.safetensors")
    assert written == (tmp_path / "state.safetensors").stat().st_size
    found, expected = load_file(tmp_path / "state.safetensors"), load_state(saved)
    assert found.keys() == expected.keys() == load(saved).tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_damaged_run_is_refused_and_nothing_written(saved: Path, tmp_path: Path) -> None:
    path = saved / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="cannot read packed weights"):
        export_state(saved, tmp_path / "state.safetensors")
    assert not (tmp_path / "state.safetensors").exists()
