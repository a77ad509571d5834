"""Stored programs: read back as they were, and refused with a reason when damaged or hostile."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from apportion.errors import InputError
from apportion.network import Network, capture, load_program, save_program


@pytest.fixture
def stored(mixed_network: Network, tmp_path: Path) -> Path:
    path = tmp_path / "program.json"
    save_program(mixed_network, path)
    return path


def test_a_program_reads_back_as_the_same_network(
    mixed_network: Network, stored: Path, images: Tensor
) -> None:
    again = load_program(stored, mixed_network.tensors)
    assert again.layers == mixed_network.layers
    assert again.blocks == mixed_network.blocks
    assert again.skipped == mixed_network.skipped
    assert again.inputs == mixed_network.inputs
    assert again.float_bits == mixed_network.float_bits
    assert list(again.tensors) == list(mixed_network.tensors)
    with torch.inference_mode():
        assert torch.equal(again.run(images), mixed_network.run(images))


def test_storing_what_was_read_gives_the_same_file(mixed_network: Network, stored: Path) -> None:
    second = stored.with_name("second.json")
    save_program(load_program(stored, mixed_network.tensors), second)
    assert second.read_bytes() == stored.read_bytes()


def test_the_file_holds_no_weights(mixed_network: Network, stored: Path) -> None:
    assert stored.stat().st_size < 10_000
    shape = {name: torch.zeros_like(tensor) for name, tensor in mixed_network.tensors.items()}
    assert load_program(stored, shape).run(torch.ones(2, 3, 9, 9)).count_nonzero() == 0


def test_arguments_that_json_cannot_hold_survive(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x).masked_fill(x > 0, -torch.inf).to(torch.float64)
            y = y.clamp(min=-1e30).contiguous(memory_format=torch.contiguous_format)
            return y + torch.arange(4, dtype=torch.float64, device=x.device)[None]

    x = torch.randn(3, 4)
    network = capture(Odd(), x)
    save_program(network, tmp_path / "odd.json")
    assert torch.equal(load_program(tmp_path / "odd.json", network.tensors).run(x), network.run(x))


def test_in_place_operations_in_a_region_with_gradients_are_stored_as_functional_ones(tmp_path: Path) -> None:
    class Region(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            with torch.enable_grad():
                scale = y.abs()
                scale.clamp_(min=0.5)
                scale[:, :2] = 2.0
            return y / scale

    module, x = Region().eval(), torch.randn(3, 4)
    network = capture(module, x)
    save_program(network, tmp_path / "program.json")
    again = load_program(tmp_path / "program.json", network.tensors)
    with torch.inference_mode():
        torch.testing.assert_close(again.run(x), module(x))


def test_a_program_that_writes_in_place_is_not_stored(mixed_network: Network, tmp_path: Path) -> None:
    network = mixed_network.to("cpu")
    relu, *_ = network.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)
    relu.target = torch.ops.aten.relu_.default
    with pytest.raises(InputError, match=r"calls aten.relu_.default, which writes in place"):
        save_program(network, tmp_path / "program.json")
    assert not (tmp_path / "program.json").exists()


def first(document: dict[str, Any], operator: str) -> dict[str, Any]:
    return next(node for node in document["nodes"] if node["operator"] == operator)


def call(operator: str) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["nodes"][0].update(operator=operator)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: d.update(version=2), "version"),
        (lambda d: d.update(format="other"), "format"),
        (lambda d: d.update(extra=1), "extra"),
        (lambda d: d.pop("output"), "output"),
        (lambda d: d.update(output="nothing"), "its output 'nothing' is never computed"),
        (lambda d: d["nodes"].reverse(), "before it is computed"),
        (lambda d: d["nodes"].append(d["nodes"][0]), "computes the value '.*' twice"),
        (lambda d: d["nodes"][0].update(name="a;b"), "name"),
        (lambda d: d["inputs"][0].update(dtype="load"), "dtype 'load'"),
        (call("aten.nothing.default"), "no functional operator 'aten.nothing.default'"),
        (call("aten.relu_.default"), "no functional operator 'aten.relu_.default'"),
        (call("aten.from_file.default"), "not an operator that a program may call"),
        (call("aten.save.default"), "not an operator that a program may call"),
        (call("os.system"), "not an operator that a program may call"),
        (call("operator.methodcaller"), "not an operator that a program may call"),
        (call("aten.__class__.__bases__"), "no functional operator"),
        (call("higher_order.cond"), "not an operator that a program may call"),
        (lambda d: first(d, "aten.conv2d.padding")["args"].__setitem__(4, "sideways"), "is damaged"),
        (lambda d: first(d, "aten.conv2d.default").pop("elements"), "is damaged"),
        (
            lambda d: first(d, "aten.linear.default").update(args=[]),
            "its call of aten.linear.default has 0 arguments",
        ),
        (lambda d: d["nodes"][0].update(kwargs={"sideways": 1}), "sideways"),
    ],
)
def test_damaged_and_hostile_programs_are_refused(
    mixed_network: Network, stored: Path, damage: Callable[[dict[str, Any]], Any], message: str
) -> None:
    document = json.loads(stored.read_text())
    damage(document)
    stored.write_text(json.dumps(document))
    with pytest.raises(InputError, match=message):
        load_program(stored, mixed_network.tensors)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not JSON"),
        ('{"format": "apportion.program"', "is not JSON"),
        ("[" * 1000 + "]" * 1000, "nested more than"),
        ('{"nodes": NaN}', "NaN"),
        ("[]", "not valid"),
    ],
)
def test_files_that_are_no_program_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "program.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        load_program(path, {})


def test_a_missing_tensor_is_named(mixed_network: Network, stored: Path) -> None:
    tensors = {name: tensor for name, tensor in mixed_network.tensors.items() if name != "head.bias"}
    with pytest.raises(InputError, match=r"reads the tensor 'head.bias', which is not among those given"):
        load_program(stored, tensors)


def test_a_folder_that_cannot_be_written_is_an_error(mixed_network: Network, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        save_program(mixed_network, tmp_path / "file" / "program.json")
