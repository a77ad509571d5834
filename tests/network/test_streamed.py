"""A folder whose weights are larger than the memory bound is read tensor by tensor, to the same network."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from apportion.errors import InputError
from apportion.network import StreamedTensors, fingerprint, load_model

with warnings.catch_warnings():
    # The library's own, on import.
    warnings.simplefilter("ignore")
    transformers: Any = pytest.importorskip("transformers")

KINDS = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {"num_key_value_heads": 2}),
    "tied": (
        "Qwen3ForCausalLM",
        "Qwen3Config",
        {"num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True},
    ),
}
SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
IDS = torch.randint(0, 96, (3, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    model, config, options = KINDS[request.param]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = getattr(transformers, model)(getattr(transformers, config)(**SIZES, **options))
        module.to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="20KB")
    return tmp_path


def test_a_streamed_folder_is_the_network_that_is_loaded(folder: Path) -> None:
    loaded = load_model(f"hf:{folder}")
    streamed = load_model(f"hf:{folder}", memory_bytes=4000)
    assert not loaded.is_streamed
    assert not load_model(f"hf:{folder}", memory_bytes=10**6).is_streamed
    assert isinstance(streamed.tensors, StreamedTensors)
    assert streamed.layers == loaded.layers
    assert streamed.float_bits == loaded.float_bits
    with torch.inference_mode():
        assert torch.equal(streamed.run(IDS), loaded.run(IDS))
    assert streamed.tensors.held_bytes <= 1000
    assert fingerprint(streamed.tensors) == fingerprint(loaded.tensors)


@pytest.mark.parametrize(
    ("model", "config", "options"),
    [
        (
            "ResNetForImageClassification",
            "ResNetConfig",
            {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        ),
        (
            "SwiftFormerForImageClassification",
            "SwiftFormerConfig",
            {"image_size": 32, "depths": [1, 1, 1, 1], "embed_dims": [8, 8, 16, 16]},
        ),
    ],
)
def test_a_streamed_folder_keeps_the_batch_norms_that_are_folded_when_it_is_loaded(
    model: str, config: str, options: dict[str, Any], tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 3, 32, 32, generator=generator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = getattr(transformers, model)(getattr(transformers, config)(**options)).eval()
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.1, generator=generator)
                part.running_var.uniform_(0.5, 2, generator=generator)
        module.save_pretrained(tmp_path)
    loaded = load_model(f"hf:{tmp_path}", example=images)
    streamed = load_model(f"hf:{tmp_path}", example=images, memory_bytes=1000)
    assert streamed.is_streamed
    assert [layer.name for layer in streamed.layers] == [layer.name for layer in loaded.layers]
    with torch.inference_mode():
        # Folding reorders roundings.
        torch.testing.assert_close(streamed.run(images), loaded.run(images), rtol=1e-4, atol=1e-4)


def test_a_tensor_that_is_not_finite_is_refused_when_it_is_read(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if name.endswith("1.mlp.down_proj.weight"):
                tensor.fill_(torch.inf)
        save_file(tensors, path)
    streamed = load_model(f"hf:{folder}", memory_bytes=4000)
    with pytest.raises(InputError, match=r"down_proj.weight' has 1,536 values of 1,536 that are NaN or inf"):
        streamed.run(IDS)
