"""Embeddings are stored, loaded, exported and timed like other layers, and named where they cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from apportion.errors import InputError
from apportion.export import export_onnx, export_recipe, load, measure_latency, save_network
from apportion.export.packed import read_packed
from apportion.network import Data, Network, capture
from apportion.quantizer import parse_options
from apportion.reconstruct import finalize_nearest
from apportion.sensitivity import FisherSettings, measure_profile, solve_plan


class Language(nn.Module):
    """A table, a layer and a head that may be the table."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(50, 32)
        self.mix = nn.Linear(32, 32)
        self.head = nn.Linear(32, 50, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        return self.head(x + self.mix(x.cumsum(1) / 4).relu())


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(0, 50, (12, 5), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "apart"])
def network(request: pytest.FixtureRequest, ids: Tensor) -> Network:
    return capture(Language(request.param), ids)


@pytest.fixture(scope="module")
def run(network: Network, ids: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run per channel: rows of the table have options of their own."""
    data = Data(ids, None, "ids")
    profile, arrays = measure_profile(
        network, data, parse_options("w2..4,w3g8"), settings=FisherSettings(share=1.0)
    )
    plan = solve_plan(profile, arrays, "4b", "channel")
    assert plan.layers[0].name == "table"
    assert len(plan.layers[0].strip_options()) == 50
    folder = tmp_path_factory.mktemp("run")
    save_network(folder, network, plan, finalize_nearest(network, plan))
    return folder


def test_a_stored_table_gives_the_same_outputs_and_counts_once(
    network: Network, run: Path, ids: Tensor
) -> None:
    again = load(run)
    with torch.inference_mode():
        assert torch.equal(again(ids), network.run(ids, tensors=again.tensors))
    tied = len(network.layers) == 2
    weights = 50 * 32 + 32 * 32 + (0 if tied else 50 * 32)
    assert read_packed(run / "weights.safetensors").plan.complexity.weight_count == weights


@pytest.mark.parametrize("kernels", ["float", "integer"])
def test_an_exported_table_is_gathered_from(run: Path, ids: Tensor, tmp_path: Path, kernels: str) -> None:
    import onnx
    import onnxruntime

    path = tmp_path / "net.onnx"
    export_onnx(run, path, kernels=kernels)  # type: ignore[arg-type]
    assert any(node.op_type == "Gather" for node in onnx.load(path).graph.node)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    with torch.inference_mode():
        expected = load(run)(ids).numpy()
    found = session.run(["output"], {given.name: ids.numpy()})[0]
    # Kernels for integers round what enters to 8 bits.
    tolerance = 1e-4 if kernels == "float" else 5e-2
    assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()


def test_every_use_of_a_table_is_timed(network: Network, ids: Tensor) -> None:
    measured = measure_latency(network, ids, parse_options("w4,w8"), repeats=3)
    assert {each.layer for each in measured} == {layer.name for layer in network.layers}
    assert all(each.median_ms > 0 for each in measured)


def test_recipes_refuse_a_table_by_name_or_leave_it_float(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"layer 'table' cannot be stored in torchao .* it is an embedding"):
        export_recipe(run, tmp_path / "recipe.json", "torchao")
    recipe = export_recipe(run, tmp_path / "recipe.json", "torchao", lower=True)
    assert recipe.lowered["table"] == "it is an embedding, and only layers that multiply can be: float"
