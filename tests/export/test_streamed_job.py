"""A network that is read layer by layer goes through the whole job to the same numbers and the same file."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import apportion
from apportion.allocator import Plan
from apportion.errors import InputError
from apportion.export import read_packed, save_network
from apportion.network import Data, Network, StreamedTensors, capture
from apportion.quantizer import parse_option_set, parse_options
from apportion.reconstruct import Finalized, Gptq, LayersOnDemand, Nearest, measure_finalized
from apportion.sensitivity import ActivationSettings, FisherSettings, measure_profile, solve_plan

OPTIONS = parse_options("w2..5")
LIMIT = 2_000
"""Bytes: a fraction of the network below."""


class Stack(nn.Module):
    """Blocks with two branches, on tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.up = nn.ModuleList(nn.Linear(8, 16, bias=False) for _ in range(3))
        self.gate = nn.ModuleList(nn.Linear(8, 16) for _ in range(3))
        self.down = nn.ModuleList(nn.Linear(16, 8) for _ in range(3))
        self.head = nn.Linear(8, 11)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        for up, gate, down in zip(self.up, self.gate, self.down, strict=True):
            normed = nn.functional.layer_norm(x, (8,))
            x = x + down(up(normed) * gate(normed).sigmoid())
        logits: Tensor = self.head(x)
        return logits


@pytest.fixture(scope="module")
def data() -> Data:
    return Data(torch.randint(0, 11, (24, 6), generator=torch.Generator().manual_seed(1)), None, "tokens")


@pytest.fixture(scope="module")
def loaded(data: Data) -> Network:
    torch.manual_seed(0)
    return capture(Stack(), data.inputs)


@pytest.fixture(scope="module")
def streamed(loaded: Network) -> Network:
    tensors = StreamedTensors(
        {name: tensor.to("meta") for name, tensor in loaded.tensors.items()},
        lambda name: loaded.tensors[name].detach().clone(),
        torch.device("cpu"),
        LIMIT,
    )
    return Network(loaded.graph, tensors, loaded.inputs)


@pytest.fixture(scope="module")
def plan(loaded: Network, data: Data) -> Plan:
    return solve_plan(*measure_profile(loaded, data, OPTIONS), "5b", "channel")


def test_scores_of_a_streamed_network_are_those_of_the_loaded_one(
    loaded: Network, streamed: Network, data: Data
) -> None:
    settings = FisherSettings(memory_bytes=2 * LIMIT)
    found, arrays = measure_profile(streamed, data, OPTIONS, settings=settings)
    expected, others = measure_profile(loaded, data, OPTIONS, settings=settings)
    assert found.fingerprint == expected.fingerprint
    assert [layer.scores for layer in found.layers] == [layer.scores for layer in expected.layers]
    assert arrays is not None
    assert others is not None
    assert torch.equal(arrays.channel_loss, others.channel_loss)
    assert (found.weight_count, found.fixed_bits) == (expected.weight_count, expected.fixed_bits)


def test_activations_of_a_streamed_network_are_scored_segment_by_segment(loaded: Network, data: Data) -> None:
    """Under autograd the weights that were read stay: no more may be read at once than a segment has."""
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def read(name: str) -> Tensor:
        nonlocal most
        found = loaded.tensors[name].detach().clone()
        alive.append(weakref.ref(found))
        most = max(most, sum(tensor.nbytes for each in alive if (tensor := each()) is not None))
        return found

    kinds = {name: tensor.to("meta") for name, tensor in loaded.tensors.items()}
    streamed = Network(loaded.graph, StreamedTensors(kinds, read, torch.device("cpu"), LIMIT), loaded.inputs)
    options = ActivationSettings(parse_option_set("w4a4,w4a8").activations, attention=True)
    settings = FisherSettings(memory_bytes=2 * LIMIT)
    found, expected = (
        measure_profile(network, data, OPTIONS, settings=settings, activations=options)[0].activations
        for network in (streamed, loaded)
    )
    assert found is not None
    assert expected is not None
    assert len(found.sites) > 3
    for one, other in zip(found.sites, expected.sites, strict=True):
        assert [score.loss for score in one.scores] == pytest.approx([score.loss for score in other.scores])
    assert most < sum(tensor.nbytes for tensor in loaded.tensors.values()) / 2


# Positions have weights only where the network is in memory.
@pytest.mark.parametrize("method", [Gptq(weighted=False), Nearest()], ids=["gptq", "nearest"])
def test_a_streamed_network_is_finalized_to_the_same_file_layer_by_layer(
    loaded: Network, streamed: Network, data: Data, plan: Plan, tmp_path: Path, method: Gptq | Nearest
) -> None:
    found: dict[str, Finalized] = {}
    for name, network in (("loaded", loaded), ("streamed", streamed)):
        found[name] = method.finalize(network, plan, data, store=tmp_path / f"parts of {name}")
        save_network(tmp_path / name, network, plan, found[name])
    assert isinstance(found["streamed"].layers, LayersOnDemand)
    replaced = found["streamed"].tensors(streamed)
    assert isinstance(replaced, StreamedTensors)
    assert replaced.memory_bytes == LIMIT
    files = [tmp_path / name / "weights.safetensors" for name in found]
    assert files[0].read_bytes() == files[1].read_bytes()
    one, other = (
        measure_finalized(network, found[name], data).loss
        for name, network in (("loaded", loaded), ("streamed", streamed))
    )
    assert one == pytest.approx(other, rel=1e-5)


def test_what_was_kept_and_is_gone_is_missed_by_name(
    streamed: Network, data: Data, plan: Plan, tmp_path: Path
) -> None:
    finalized = Gptq().finalize(streamed, plan, data, store=tmp_path)
    for path in tmp_path.rglob("*.safetensors"):
        path.unlink()
    with pytest.raises(InputError, match=r"the weights of layer 'table' are no longer"):
        finalized.layers[0]


def test_a_large_run_is_loaded_layer_by_layer_to_the_same_network(
    loaded: Network, data: Data, plan: Plan, tmp_path: Path
) -> None:
    save_network(tmp_path, loaded, plan, Nearest().finalize(loaded, plan, data))
    whole, in_parts = apportion.load(tmp_path), apportion.load(tmp_path, memory_bytes=LIMIT)
    assert in_parts.is_streamed
    assert not apportion.load(tmp_path, memory_bytes=2**20).is_streamed
    with torch.inference_mode():
        assert torch.equal(in_parts.run(data.inputs), whole.run(data.inputs))
    assert isinstance(in_parts.tensors, StreamedTensors)
    assert in_parts.tensors.memory_bytes == LIMIT
    assert in_parts.tensors.held_bytes <= LIMIT


def test_a_damaged_layer_of_a_large_run_is_refused_when_it_is_read(
    loaded: Network, data: Data, plan: Plan, tmp_path: Path
) -> None:
    save_network(tmp_path, loaded, plan, Nearest().finalize(loaded, plan, data))
    path = tmp_path / "weights.safetensors"
    packed = read_packed(path, memory_bytes=LIMIT)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(InputError, match="cannot read packed weights"):
        list(packed.finalized.layers)
