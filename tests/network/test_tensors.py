"""Streamed tensors are the same network, and hold no more than their bound."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from apportion.network import Network, StreamedTensors, capture, fingerprint
from apportion.network.tensors import outlines, overlaid, picked


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    return capture(module, torch.randn(4, 6))


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


def streamed(network: Network, folder: Path, memory_bytes: int = 0) -> Network:
    path = folder / "weights.safetensors"
    save_file({name: tensor.detach().clone() for name, tensor in network.tensors.items()}, path)

    def read(name: str) -> Tensor:
        with safe_open(path, framework="pt") as file:
            found: Tensor = file.get_tensor(name)
            return found.clone()

    tensors = StreamedTensors(network.tensors, read, torch.device("cpu"), memory_bytes)
    return Network(network.graph, tensors, network.inputs)


@pytest.mark.parametrize("memory_bytes", [0, 200, 2**20])
def test_a_streamed_network_is_the_same_network(
    network: Network, inputs: Tensor, tmp_path: Path, memory_bytes: int
) -> None:
    found = streamed(network, tmp_path, memory_bytes)
    assert found.is_streamed
    assert found.layers == network.layers
    assert found.float_bits == network.float_bits
    assert fingerprint(found.tensors) == fingerprint(network.tensors)
    with torch.inference_mode():
        assert torch.equal(found.run(inputs), network.run(inputs))
    change = {network.layers[1].weight: torch.zeros(8, 8)}
    with torch.no_grad():
        assert torch.equal(found.replace(change).run(inputs), network.replace(change).run(inputs))
        assert torch.equal(found.run(inputs, tensors=change), network.run(inputs, tensors=change))


def test_what_is_kept_never_weighs_more_than_the_bound_and_is_read_once_while_it_fits() -> None:
    asked: list[str] = []

    def read(name: str) -> Tensor:
        asked.append(name)
        return torch.full((10,), float(name))

    kinds = {str(number): torch.empty(10, device="meta") for number in range(5)}
    tensors = StreamedTensors(kinds, read, torch.device("cpu"), memory_bytes=100)
    for name in "0011220011":
        assert bool((tensors[name] == float(name)).all())
        assert tensors.held_bytes <= 100
    # Two of 40 bytes fit; the third sends away the one that was asked for longest ago.
    assert asked == ["0", "1", "2", "0", "1"]
    assert tensors.picked(["1"])["1"] is tensors["1"]


def test_outlines_and_choices_read_nothing() -> None:
    def read(name: str) -> Tensor:
        raise AssertionError(name)

    kinds = {name: torch.empty(2, 3, device="meta") for name in "abc"}
    tensors = StreamedTensors(kinds, read, torch.device("cpu"))
    top = {"b": torch.ones(2, 3)}
    merged = overlaid(picked(tensors, "ab"), top)
    assert list(merged) == ["a", "b"]
    assert "c" not in merged
    assert outlines(merged)["a"].shape == (2, 3)
    assert merged["b"] is top["b"]
    with pytest.raises(KeyError, match="c"):
        merged["c"]


def test_a_tensor_kept_in_inference_mode_can_be_used_under_autograd(
    network: Network, inputs: Tensor, tmp_path: Path
) -> None:
    found = streamed(network, tmp_path, 2**20)
    with torch.inference_mode():
        found.run(inputs)
    asked = inputs.clone().requires_grad_()
    found.run(asked).sum().backward()
    assert asked.grad is not None
