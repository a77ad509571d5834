"""Architectures of the transformers library, small and with random weights, passed as they are."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from apportion.network import Network, capture, load_model, load_program, save_program

with warnings.catch_warnings():
    # The library's own, on import.
    warnings.simplefilter("ignore")
    transformers: Any = pytest.importorskip("transformers")

TEXT = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**TEXT, "num_key_value_heads": 2}
VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
GPT2 = {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "layer_type": "basic"}
MOBILENET = {"image_size": 32, "depth_multiplier": 0.5, "num_labels": 7}

ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "resnet": ("ResNetForImageClassification", "ResNetConfig", RESNET, 9),
    "mobilenet": ("MobileNetV2ForImageClassification", "MobileNetV2Config", MOBILENET, 53),
    "vit": ("ViTForImageClassification", "ViTConfig", {**VISION, "image_size": 32, "patch_size": 8}, 14),
    "bert": ("BertForSequenceClassification", "BertConfig", TEXT, 15),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {**GPT2, "bos_token_id": 1, "eos_token_id": 2}, 9),
    "llama": ("LlamaForCausalLM", "LlamaConfig", GROUPED, 16),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**GROUPED, "head_dim": 8}, 16),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**GROUPED, "num_local_experts": 4}, 12),
}


def build(name: str) -> tuple[nn.Module, Tensor]:
    """A module with lively batch norms, and eight samples."""
    model, config, options, _ = ARCHITECTURES[name]
    torch.manual_seed(0)
    module = getattr(transformers, model)(getattr(transformers, config)(**options)).eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
            part.weight.data.uniform_(0.5, 1.5)
            part.bias.data.normal_(0, 0.1)
    if name in ("resnet", "mobilenet", "vit"):
        return module, torch.randn(8, 3, 32, 32)
    return module, torch.randint(3, 96, (8, 12))


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_an_architecture_is_captured_runs_at_any_batch_size_and_is_stored(name: str, tmp_path: Path) -> None:
    module, x = build(name)
    network = capture(module, x[:2])
    save_program(network, tmp_path / "program.json")
    again = load_program(tmp_path / "program.json", network.tensors)
    assert len(network.layers) == ARCHITECTURES[name][3]
    with torch.inference_mode():
        for samples in (1, 3, 8):
            expected, given = module(x[:samples]).logits, network.run(x[:samples])
            # Single precision through up to 52 folded batch norms.
            assert float((given - expected).norm() / expected.norm()) < 1e-4
            assert torch.equal(again.run(x[:samples]), given)
    in_blocks = [layer for block in network.blocks for layer in block.layers]
    assert sorted(layer.name for layer in in_blocks) == sorted(layer.name for layer in network.layers)


def gpt2() -> Network:
    module, x = build("gpt2")
    return capture(module, x)


def test_gpt2_layers_are_stored_in_by_out_and_its_tied_head_is_one_layer() -> None:
    network = gpt2()
    tied, *others = network.layers
    assert all(layer.transposed for layer in others)
    attention = others[0]
    assert (attention.shape, attention.channels, attention.fan_in) == ((32, 96), 96, 32)
    assert (tied.name, tied.kind, tied.shape) == ("transformer.wte", "linear", (96, 32))
    assert (len(tied.lookups), len(tied.products)) == (1, 1)
    assert tied.macs == 12 * 32 * 96
    assert "places that no input changes" in network.skipped["transformer.wpe.weight"]


def test_an_embedding_of_its_own_is_a_layer_without_products() -> None:
    module, x = build("llama")
    embedding, *others = capture(module, x).layers
    assert (embedding.name, embedding.kind, embedding.shape) == ("model.embed_tokens", "embedding", (96, 32))
    assert (embedding.macs, embedding.products) == (0, ())
    assert not any(layer.lookups for layer in others)


def test_mixtral_experts_stay_float_with_the_reason() -> None:
    module, x = build("mixtral")
    network = capture(module, x)
    experts = [name for name in network.skipped if "experts" in name]
    assert len(experts) == 4
    routers = [layer.name for layer in network.layers if layer.name.endswith("mlp.gate")]
    assert len(routers) == 2


def test_an_exported_file_of_a_library_output_loads_as_its_logits(tmp_path: Path) -> None:
    module, x = build("bert")
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(module, (x[:2],), dynamic_shapes=dynamic, strict=False)
    torch.export.save(program, tmp_path / "bert.pt2")
    network = load_model(str(tmp_path / "bert.pt2"))
    with torch.inference_mode():
        torch.testing.assert_close(network.run(x), module(x).logits)
