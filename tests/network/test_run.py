"""Running: overrides, hooks, gradients, other devices' worth of memory, and the same program as a module."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from apportion.errors import InputError
from apportion.network import LayerCall, Network, capture


def test_overriding_every_tensor_with_itself_changes_nothing(mixed_network: Network, images: Tensor) -> None:
    copies = {name: tensor.clone() for name, tensor in mixed_network.tensors.items()}
    with torch.inference_mode():
        assert torch.equal(mixed_network.run(images, tensors=copies), mixed_network.run(images))


def test_an_override_acts_as_a_module_with_that_weight(mixed_network: Network, images: Tensor) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    network = capture(module, torch.randn(2, 4))
    weight, x = torch.randn(4, 4), torch.randn(3, 4)
    changed = network.run(x, tensors={"0.weight": weight})
    module[0].weight.data = weight
    with torch.inference_mode():
        assert torch.equal(changed, module(x))


def test_replace_is_running_with_the_override_and_leaves_the_original(
    mixed_network: Network, images: Tensor
) -> None:
    change = {"head.weight": mixed_network.tensors["head.weight"] * 2}
    before = mixed_network.run(images)
    replaced = mixed_network.replace(change)
    assert torch.equal(replaced.run(images), mixed_network.run(images, tensors=change))
    assert torch.equal(replaced.graph_module(images), replaced.run(images))
    assert torch.equal(mixed_network.run(images), before)


def test_an_override_of_no_tensor_is_refused_with_the_nearest_names(
    mixed_network: Network, images: Tensor
) -> None:
    with pytest.raises(InputError, match=r"no tensor 'heed.weight'; the nearest are head.weight"):
        mixed_network.run(images, tensors={"heed.weight": torch.zeros(5, 8)})


def test_the_hook_sees_what_enters_and_leaves_each_use_in_order(
    mixed_network: Network, images: Tensor
) -> None:
    seen: list[str] = []

    def note(call: LayerCall, source: Tensor, result: Tensor) -> Tensor:
        seen.append(call.node)
        if call.layer.kind == "linear":
            weight, bias = mixed_network.weight(call.layer), mixed_network.bias(call.layer)
            torch.testing.assert_close(nn.functional.linear(source, weight, bias), result)
        return result

    with torch.inference_mode():
        mixed_network.run(images, on_layer=note)
    positions = [mixed_network.schedule.position[node] for node in seen]
    assert positions == sorted(positions)
    assert sorted(seen) == sorted(node for layer in mixed_network.layers for node in layer.nodes)


def test_what_the_hook_returns_goes_on(mixed_network: Network, images: Tensor) -> None:
    def silence(call: LayerCall, source: Tensor, result: Tensor) -> Tensor:
        return torch.zeros_like(result) if call.layer.name == "head" else result

    assert mixed_network.run(images, on_layer=silence).count_nonzero() == 0


def test_gradients_by_intermediate_values_give_the_gradients_by_weights(
    mixed_network: Network, images: Tensor
) -> None:
    """dloss/dW of a linear layer is the sum over its uses of (dloss/dy)' x."""
    sources: dict[str, Tensor] = {}
    results: dict[str, Tensor] = {}
    mix = next(layer for layer in mixed_network.layers if layer.name == "mix")

    def attach(call: LayerCall, source: Tensor, result: Tensor) -> Tensor:
        if call.layer == mix:
            sources[call.node] = source.detach()
            results[call.node] = result = result.requires_grad_()
        return result

    loss = mixed_network.run(images, on_layer=attach).logsumexp(-1).sum()
    gradients = torch.autograd.grad(loss, list(results.values()))
    by_parts = sum(gradient.T @ source for gradient, source in zip(gradients, sources.values(), strict=True))
    weight = mixed_network.weight(mix).clone().requires_grad_()
    loss = mixed_network.run(images, tensors={mix.weight: weight}).logsumexp(-1).sum()
    torch.testing.assert_close(by_parts, torch.autograd.grad(loss, weight)[0])


def test_values_are_forgotten_after_their_last_use(images: Tensor) -> None:
    network = capture(nn.Sequential(*[nn.Linear(6, 6) for _ in range(5)]), torch.randn(2, 6))
    alive: list[weakref.ref[Any]] = []
    most = 0

    def count(call: LayerCall, source: Tensor, result: Tensor) -> Tensor:
        nonlocal most
        gc.collect()
        alive.append(weakref.ref(result))
        most = max(most, sum(reference() is not None for reference in alive))
        return result

    with torch.inference_mode():
        network.run(torch.randn(3, 6), on_layer=count)
    # The result of this layer, and that of the layer before which it just read.
    assert most == 2


def test_the_graph_module_computes_the_same(mixed_network: Network, images: Tensor) -> None:
    with torch.inference_mode():
        assert torch.equal(mixed_network.graph_module(images), mixed_network.run(images))


def test_moving_to_another_device_moves_tensors_and_what_operators_make() -> None:
    class Position(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x + torch.arange(4, device=x.device).to(x.dtype))

    network = capture(Position(), torch.randn(2, 4))
    moved = network.to("meta")
    assert moved.device.type == "meta"
    assert moved.run(torch.zeros(3, 4, device="meta")).shape == (3, 4)
    assert moved.layers == network.layers
    assert network.device.type == "cpu"


def test_layers_left_out_stay_float_and_change_nothing_else(mixed_network: Network, images: Tensor) -> None:
    first, second = mixed_network.layers[0], mixed_network.layers[1]
    without = mixed_network.without([second.name], "asked to")
    assert [layer.name for layer in without.layers] == [
        layer.name for layer in mixed_network.layers if layer is not second
    ]
    assert without.skipped[second.weight] == "asked to"
    assert without.excluded == (second.name,)
    assert mixed_network.excluded == ()
    assert torch.equal(without.run(images), mixed_network.run(images))
    seen: list[str] = []
    without.run(images, on_layer=lambda call, source, result: (seen.append(call.layer.name), result)[1])
    assert first.name in seen
    assert second.name not in seen
    assert all(second not in block.layers for block in without.blocks)
    assert without.without([], "nothing") is without


def test_layers_left_out_stay_so_on_another_device(mixed_network: Network) -> None:
    name = mixed_network.layers[0].name
    moved = mixed_network.without([name], "asked to").to("cpu")
    assert moved.excluded == (name,)
    assert moved.skipped[mixed_network.layers[0].weight] == "asked to"
    assert name not in [layer.name for layer in moved.layers]


def test_leaving_out_no_layer_or_all_is_refused(mixed_network: Network) -> None:
    with pytest.raises(InputError, match=r"no layer 'heed'; the nearest are head"):
        mixed_network.without(["heed"], "asked to")
    with pytest.raises(InputError, match="every layer would stay float"):
        mixed_network.without([layer.name for layer in mixed_network.layers], "asked to")


def test_projections_of_one_input_read_the_same_value() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(6, 6) for _ in range(3))
            self.out = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            scores = self.query(x) @ self.key(x).transpose(1, 2)
            logits: Tensor = self.out(scores.softmax(-1) @ self.value(x)).mean(1)
            return logits

    network = capture(Attention().eval(), torch.randn(2, 3, 6))
    reads = {layer.name: network.reads(layer) for layer in network.layers}
    assert reads["query"] == reads["key"] == reads["value"]
    assert reads["out"] != reads["query"]
