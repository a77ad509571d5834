"""Folding batch norm: the output stays, the tensors go, and what cannot be folded is left alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from apportion.errors import InputError
from apportion.network import Network, capture

Lively = Callable[..., nn.Module]


def has_batch_norm(network: Network) -> bool:
    return any("batch_norm" in str(node.target) for node in network.graph.nodes)


def check(module: nn.Module, x: Tensor) -> Network:
    network = capture(module, x)
    with torch.inference_mode():
        expected = module(x)
        # Single precision, a handful of operations.
        assert float((network.run(x) - expected).norm() / expected.norm()) < 1e-5
    return network


@given(
    bias=st.booleans(), affine=st.booleans(), groups=st.sampled_from([1, 2, 4]), seed=st.integers(0, 2**31)
)
@settings(max_examples=6, derandomize=True, deadline=None)
def test_a_batch_norm_after_a_convolution_is_folded(
    lively: Lively, bias: bool, affine: bool, groups: int, seed: int
) -> None:
    torch.manual_seed(seed)
    conv = nn.Conv2d(4, 8, 3, groups=groups, bias=bias)
    module = nn.Sequential(conv, nn.BatchNorm2d(8, affine=affine), nn.Flatten())
    network = check(lively(module, seed), torch.randn(3, 4, 5, 5))
    assert list(network.tensors) == ["0.weight", "0.bias"]
    assert network.float_bits == 32 * (conv.weight.numel() + 8)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Conv1d(3, 6, 3), (2, 3, 9)), (nn.Linear(6, 6), (2, 6)), (nn.Linear(6, 6, bias=False), (2, 6))],
)
def test_a_batch_norm_after_a_layer_on_vectors_or_signals_is_folded(
    lively: Lively, layer: nn.Module, shape: tuple[int, ...]
) -> None:
    module = nn.Sequential(layer, nn.BatchNorm1d(6), nn.Flatten())
    assert not has_batch_norm(check(lively(module), torch.randn(shape)))


@pytest.mark.parametrize(
    ("name", "bias"), [("weight", "bias"), ("kernel", "kernel_bias"), ("in_weight", "in_bias")]
)
def test_the_folded_bias_of_a_weight_of_any_name_stands_beside_it(
    lively: Lively, name: str, bias: str
) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_parameter(name, nn.Parameter(torch.randn(4, 3, 2, 2)))
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(nn.functional.conv2d(x, self.get_parameter(name))).flatten(1)

    x = torch.randn(2, 3, 4, 4)
    network = check(lively(Own()), x)
    assert list(network.tensors) == [name, bias]
    with torch.inference_mode():
        assert torch.equal(network.graph_module(x), network.run(x))


def test_a_batch_norm_over_tokens_is_not_folded_into_the_linear_before_it(lively: Lively) -> None:
    # With as many tokens as features only the axes tell the two apart.
    network = check(lively(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))), torch.randn(2, 6, 6))
    assert has_batch_norm(network)


class Uses(nn.Module):
    """One convolution in three situations where folding its batch norm would change something else."""

    def __init__(self, situation: str) -> None:
        super().__init__()
        self.situation = situation
        self.conv = nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.other = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = self.norm(y)
        if self.situation == "weight used twice":
            z = self.conv(z)
        elif self.situation == "output read twice":
            z = z + y
        elif self.situation == "no layer before":
            z = self.other(self.norm(x.abs()))
        return z.flatten(1)


@pytest.mark.parametrize("situation", ["weight used twice", "output read twice", "no layer before"])
def test_a_batch_norm_that_cannot_be_folded_stays(lively: Lively, situation: str) -> None:
    network = check(lively(Uses(situation)), torch.randn(2, 4, 3, 3))
    assert has_batch_norm(network)
    assert "norm.running_mean" in network.tensors


def test_a_bias_shared_with_another_layer_is_not_changed_for_it(lively: Lively) -> None:
    module = Uses("one after the other")
    module.other.bias = module.conv.bias

    def forward(x: Tensor) -> Tensor:
        return module.other(module.norm(module.conv(x))).flatten(1)

    module.forward = forward  # type: ignore[method-assign]
    network = check(lively(module), torch.randn(2, 4, 3, 3))
    assert not has_batch_norm(network)
    assert len({layer.bias for layer in network.layers}) == 2


@pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning")  # torch's own, in decomposing
def test_a_program_decomposed_to_core_operators_folds_and_finds_the_same_layers(
    mixed: nn.Module, mixed_network: Network, images: Tensor
) -> None:
    from apportion.network.capture import capture_program

    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(mixed, (images[:2],), dynamic_shapes=dynamic, strict=False)
    network = capture_program(program.run_decompositions(), images)
    assert [layer.name for layer in network.layers] == [layer.name for layer in mixed_network.layers]
    assert [layer.macs for layer in network.layers] == [layer.macs for layer in mixed_network.layers]
    assert not any(layer.transposed for layer in network.layers)
    with torch.inference_mode():
        torch.testing.assert_close(network.run(images), mixed_network.run(images))


def test_a_variance_that_is_negative_is_an_error() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()).eval()
    module[1].running_var[2] = -1.0
    with pytest.raises(InputError, match="NaN or infinite"):
        capture(module, torch.randn(2, 3, 4, 4))
