"""Fingerprints: equal for equal content however it is held, different for any difference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from apportion.network import (
    Data,
    Network,
    StreamedTensors,
    capture,
    fingerprint,
    load_model,
    load_program,
    save_program,
)

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3), "c": torch.zeros(0, 4)}


def test_order_strides_and_devices_do_not_matter() -> None:
    turned = {name: WEIGHTS[name] for name in reversed(WEIGHTS)}
    turned["a"] = WEIGHTS["a"].t().contiguous().t()
    assert fingerprint(turned) == fingerprint(WEIGHTS)
    assert len(fingerprint(WEIGHTS)) == 64


@pytest.mark.parametrize(
    "change",
    [
        {"a": torch.arange(6.0).reshape(3, 2)},
        {"a": torch.arange(6.0, dtype=torch.float64).reshape(2, 3)},
        {"a": torch.arange(6.0).reshape(2, 3).nextafter(torch.tensor(9.0))},
        {"a": torch.arange(6).reshape(2, 3)},
        {"d": torch.zeros(1)},
        {"c": torch.zeros(4, 0)},
        {"b": torch.tensor([3])},
    ],
)
def test_any_change_of_names_types_shapes_or_values_shows(change: dict[str, Tensor]) -> None:
    assert fingerprint({**WEIGHTS, **change}) != fingerprint(WEIGHTS)


def test_the_sign_of_zero_and_half_precision_count() -> None:
    assert fingerprint({"a": torch.tensor([0.0])}) != fingerprint({"a": torch.tensor([-0.0])})
    half = {"a": torch.ones(2, dtype=torch.bfloat16)}
    assert fingerprint(half) != fingerprint({"a": torch.ones(2, dtype=torch.float16)})


def test_data_is_its_inputs_and_labels_whatever_it_is_called() -> None:
    inputs, labels = torch.rand(3, 2), torch.tensor([0, 1, 2])
    assert fingerprint(Data(inputs, labels, "one")) == fingerprint(Data(inputs, labels, "two"))
    assert fingerprint(Data(inputs, None, "one")) != fingerprint(Data(inputs, labels, "one"))
    assert fingerprint(Data(inputs, labels, "one")) != fingerprint(Data(inputs, labels.flip(0), "one"))


class Between(nn.Module):
    """Two layers, and what is between them."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.between = nn.Linear(4, 6), nn.Linear(6, 3), between

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.two(self.between(self.one(x)))
        return out


INPUTS = torch.arange(8.0).reshape(2, 4)


def captured(between: Callable[[Tensor], Tensor] = torch.relu) -> Network:
    return capture(Between(between).eval(), INPUTS)


def test_a_network_is_its_program_and_its_tensors() -> None:
    found = {
        fingerprint(captured(between))
        for between in (
            torch.relu,
            torch.tanh,
            lambda x: nn.functional.leaky_relu(x, 0.1),
            lambda x: nn.functional.leaky_relu(x, 0.2),
            lambda x: x.relu() + x,
            lambda x: x.relu() + x.relu(),
        )
    }
    assert len(found) == 6
    network = captured()
    assert fingerprint(network.replace({"two.bias": torch.ones(3)})) != fingerprint(network)


def test_a_network_is_the_same_however_it_came_and_where_it_is_held(tmp_path: Path) -> None:
    first = fingerprint(captured())
    assert fingerprint(captured()) == first
    program = torch.export.export(
        Between(torch.relu).eval(), (INPUTS,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    )
    torch.export.save(program, tmp_path / "model.pt2")
    assert fingerprint(load_model(str(tmp_path / "model.pt2"))) == first
    network = captured()
    save_program(network, tmp_path / "program.json")
    assert fingerprint(load_program(tmp_path / "program.json", network.tensors)) == first
    network.tensors = StreamedTensors(
        network.outlines, dict(network.tensors).__getitem__, torch.device("cpu"), 2**20
    )
    assert fingerprint(network) == first


def test_names_of_values_do_not_count() -> None:
    network = captured()
    for node in network.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default):
        node.name = "rectified"
    assert fingerprint(Network(network.graph, network.tensors, network.inputs)) == fingerprint(captured())
