"""A folder whose weights are larger than the memory bound is read tensor by tensor, to the same network."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from apportion.errors import InputError
from apportion.network import StreamedTensors, fingerprint, load_model

with warnings.catch_warnings():
    # The library's own, on import.
    warnings.simplefilter("ignore")
    transformers: Any = pytest.importorskip("transformers")

TIED = {"tie_word_embeddings": True}
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
