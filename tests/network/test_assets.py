"""The real networks of the assets folder: sizes by hand, outputs against the module, blocks as drawn."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from apportion.network import Network, capture, load_program, save_program

# models.py leaves its description files to be closed by the interpreter.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

NAMES = ("cifar10_resnet20", "mobilenetv1_075_in1k", "vit_tiny_in1k", "babyllama105")


@cache
def captured(models: Any, name: str) -> tuple[nn.Module, Tensor, Network]:
    """A network, four samples and its capture, made once."""
    generator = torch.Generator().manual_seed(0)
    if name == "babyllama105":
        x = torch.randint(0, 105, (4, 256), generator=generator)
    else:
        side = 32 if name.startswith("cifar10") else 224
        x = torch.randn(4, 3, side, side, generator=generator)
    module = models.load(name)
    return module, x, capture(module, x)


@pytest.mark.parametrize("name", NAMES)
def test_a_real_network_equals_its_module_and_survives_storing_as_a_program(
    asset_models: Any, name: str, tmp_path: Path
) -> None:
    module, x, network = captured(asset_models, name)
    path = tmp_path / "program.json"
    save_program(network, path)
    again = load_program(path, network.tensors)
    assert path.stat().st_size < 100_000
    assert again.layers == network.layers
    with torch.inference_mode():
        for samples in (1, 3):
            expected, given = module(x[:samples]), network.run(x[:samples])
            # Single precision through up to 20 folded batch norms.
            assert float((given - expected).norm() / expected.norm()) < 1e-4
            assert torch.equal(again.run(x[:samples]), given)


def test_resnet20_costs_what_its_shapes_say(asset_models: Any) -> None:
    """Stem, 18 convolutions in three stages of 32, 16 and 8 pixels, and the linear layer."""
    network = captured(asset_models, "cifar10_resnet20")[2]
    stem = 32 * 32 * 16 * 3 * 9
    stages = [
        (6 * 16 * 16) * 9 * 32**2,
        (32 * 16 + 5 * 32 * 32) * 9 * 16**2,
        (64 * 32 + 5 * 64 * 64) * 9 * 8**2,
    ]
    assert sum(layer.macs for layer in network.layers) == stem + sum(stages) + 640 == 40_551_040
    assert len(network.layers) == 20
    assert network.skipped == {}
    # Weights, and one bias per channel in place of four batch norm tensors.
    weights = sum(layer.channels * layer.fan_in for layer in network.layers)
    channels = sum(layer.channels for layer in network.layers)
    assert network.float_bits == 32 * (weights + channels)


def test_resnet20_is_nine_residual_blocks_between_stem_and_head(asset_models: Any) -> None:
    network = captured(asset_models, "cifar10_resnet20")[2]
    names = [[layer.name for layer in block.layers] for block in network.blocks]
    middle = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3)]
    assert names == [["conv1"], *[[f"{name}.conv1", f"{name}.conv2"] for name in middle], ["linear"]]
    # A residual block ends after its last relu.
    assert [block.exit.split("_")[0] for block in network.blocks] == ["relu"] * 10 + ["linear"]


def test_mobilenet_is_a_chain_of_depthwise_and_pointwise_layers(asset_models: Any) -> None:
    network = captured(asset_models, "mobilenetv1_075_in1k")[2]
    assert len(network.layers) == len(network.blocks) == 28
    depthwise = [layer for layer in network.layers if layer.groups > 1]
    assert Counter((layer.fan_in, layer.groups == layer.channels) for layer in depthwise) == {(9, True): 13}
    assert sum(layer.macs for layer in network.layers) == 325_400_448


def test_vit_is_attention_and_mlp_branches_in_turn(asset_models: Any) -> None:
    network = captured(asset_models, "vit_tiny_in1k")[2]
    names = [[layer.name for layer in block.layers] for block in network.blocks]
    branches = [
        [f"blocks.{block}.{part}" for part in parts]
        for block in range(12)
        for parts in (("attn.qkv", "attn.proj"), ("mlp.fc1", "mlp.fc2"))
    ]
    assert names == [["patch_embed.proj"], *branches, ["head"]]
    assert set(network.skipped) == {"cls_token", "pos_embed"}
    assert all(block.exit.startswith("add") for block in network.blocks[:-1])


def test_llama_layers_share_nothing_and_its_table_is_one_of_them(asset_models: Any) -> None:
    network = captured(asset_models, "babyllama105")[2]
    table, *others = network.layers
    assert (table.name, table.kind, table.macs) == ("tok_embeddings", "embedding", 0)
    assert len(others) == 5 * 7 + 1
    assert set(network.skipped) == {"cos", "sin"}
    assert [len(block.layers) for block in network.blocks] == [1, *[4, 3] * 5, 1]
    # Every other layer is applied to each of the 256 tokens.
    assert all(layer.macs == 256 * layer.channels * layer.fan_in for layer in others)
