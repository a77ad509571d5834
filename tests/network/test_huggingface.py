"""Local folders of the transformers library: read as the library reads them, or refused with the reason."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from apportion.errors import InputError
from apportion.network import load_model
from apportion.network.checkpoint import open_checkpoint
from apportion.network.huggingface import capture_skeleton

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
    "max_position_embeddings": 16,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**TEXT, "num_key_value_heads": 2}
VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
GPT2 = {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 16}
ROUTED = {**GROUPED, "num_local_experts": 3}
QWEN_MOE = {**GROUPED, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8}
TIED = {"tie_word_embeddings": True}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "layer_type": "basic"}

FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViTForImageClassification", "ViTConfig", {**VISION, "image_size": 32, "patch_size": 8}),
    "bert": ("BertForSequenceClassification", "BertConfig", TEXT),
    "bert masked": ("BertForMaskedLM", "BertConfig", TEXT),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {**GPT2, "bos_token_id": 1, "eos_token_id": 2}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", GROUPED),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", GROUPED),
    "qwen3 tied": ("Qwen3ForCausalLM", "Qwen3Config", {**GROUPED, "head_dim": 8, **TIED}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", ROUTED),
    "qwen3 moe": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", QWEN_MOE),
}


def build(name: str) -> nn.Module:
    model, config, options = FAMILIES[name]
    torch.manual_seed(0)
    module: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**options)).eval()
    for parameter in module.parameters():
        # Norms and biases start at 1 and 0, where a mistaken one would not show.
        parameter.data += 0.02 * torch.randn(parameter.shape)
    return module


def samples(name: str) -> Tensor:
    return torch.randn(5, 3, 32, 32) if name == "vit" else torch.randint(3, 96, (5, 16))


def save(module: nn.Module, folder: Path, **options: Any) -> str:
    warnings.simplefilter("ignore")
    module.save_pretrained(folder, **options)
    return f"hf:{folder}"


def difference(given: Tensor, expected: Tensor) -> float:
    return float((given - expected).norm() / expected.norm())


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    save(build("llama"), folder)
    return folder


@pytest.fixture
def copied(llama: Path, tmp_path: Path) -> Path:
    for file in llama.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_folder_is_the_network_that_was_saved_and_its_skeleton_has_the_same_layers(
    name: str, tmp_path: Path
) -> None:
    module, x = build(name), samples(name)
    network = load_model(save(module, tmp_path))
    with torch.inference_mode():
        # Where experts are written out, sums have another order.
        assert difference(network.run(x), module(x).logits) < 1e-5
    numbers = {id(parameter): parameter.numel() for parameter in module.parameters()}
    assert network.float_bits >= 32 * sum(numbers.values())
    assert not [skipped for skipped in network.skipped if "expert" in skipped]
    skeleton = capture_skeleton(open_checkpoint(tmp_path))
    weightless = skeleton.weightless()
    assert weightless.layers == network.layers
    assert weightless.float_bits == network.float_bits
    for layer in network.layers:
        assert torch.equal(skeleton.checkpoint.read(skeleton.stored[layer.weight]), network.weight(layer))


@pytest.mark.parametrize(
    ("name", "example", "message"),
    [
        (
            "llama",
            torch.zeros(2, 16),
            r"takes token ids \(samples, tokens\), and the data holds floats, \(16,\)",
        ),
        (
            "bert",
            torch.zeros(2, 4, 4, dtype=torch.int64),
            r"takes token ids .* holds whole numbers, \(4, 4\)",
        ),
        (
            "vit",
            torch.zeros(2, 16, dtype=torch.int64),
            r"takes images \(samples, .* holds whole numbers, \(16,\)",
        ),
        ("vit", torch.zeros(2, 32, 32), r"takes images \(samples, channels, .* holds floats, \(32, 32\)"),
    ],
)
def test_data_of_another_kind_than_the_model_takes_is_refused_as_such(
    name: str, example: Tensor, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        load_model(save(build(name), tmp_path), example=example)


def test_batch_norms_are_folded_with_the_values_of_the_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = transformers.ResNetForImageClassification(transformers.ResNetConfig(**RESNET)).eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_var.uniform_(0.5, 1.5)
    images = torch.randn(3, 3, 32, 32)
    spec = save(module, tmp_path)
    network = load_model(spec, example=images)
    with torch.inference_mode():
        # Single precision through nine folded batch norms.
        assert difference(network.run(images), module(images).logits) < 1e-4
    assert not [node for node in network.graph.nodes if "batch_norm" in str(node.target)]
    with pytest.raises(InputError, match="does not state the size of its images; give data with --data"):
        load_model(spec)


def test_shards_and_stacked_experts_hold_the_same_network(tmp_path: Path) -> None:
    module, x = build("mixtral"), samples("mixtral")
    sharded = load_model(save(module, tmp_path / "sharded", max_shard_size="40KB"))
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    whole = load_model(save(module, tmp_path / "whole"))
    save_file(module.state_dict(), tmp_path / "whole" / "model.safetensors")
    stacked = load_model(f"hf:{tmp_path / 'whole'}")
    assert [layer.name for layer in whole.layers if ".1.mlp.experts.2." in layer.name] == [
        f"model.layers.1.mlp.experts.2.{part}_proj" for part in ("gate", "up", "down")
    ]
    for other in (sharded, stacked):
        assert torch.equal(other.run(x), whole.run(x))


def test_half_precision_is_read_as_float32_and_counted_as_stored(tmp_path: Path) -> None:
    module = build("gpt2").to(torch.bfloat16)
    network = load_model(save(module, tmp_path))
    module = module.float()
    x = samples("gpt2")
    with torch.inference_mode():
        assert difference(network.run(x), module(x).logits) < 1e-5
    numbers = {id(parameter): parameter.numel() for parameter in module.parameters()}
    computed = [name for name in network.tensors if not name.startswith("transformer.")]
    assert {tensor.dtype for tensor in network.tensors.values()} <= {torch.float32, torch.int64}
    assert computed == []
    assert network.float_bits == 16 * sum(numbers.values())
    assert network.replace({}).to("cpu").float_bits == network.float_bits


@pytest.mark.parametrize("context", [2, 7, 16])
def test_the_context_is_the_users_within_what_the_model_takes(llama: Path, context: int) -> None:
    network = load_model(f"hf:{llama}", context=context)
    assert network.inputs[0].shape == (context,)
    assert (
        load_model(f"hf:{llama}", example=torch.zeros(1, context, dtype=torch.int64)).inputs == network.inputs
    )


@pytest.mark.parametrize("context", [1, 17])
def test_another_context_is_refused(llama: Path, context: int) -> None:
    with pytest.raises(InputError, match=f"context is {context} tokens; .* takes 2 to 16"):
        load_model(f"hf:{llama}", context=context)


def test_token_ids_that_the_vocabulary_lacks_are_refused(llama: Path) -> None:
    with pytest.raises(InputError, match=r"does not run on samples of shape \(16,\): index out of range"):
        load_model(f"hf:{llama}", example=torch.full((2, 16), 96))


def test_a_model_that_numbers_places_from_its_padding_takes_fewer_tokens(tmp_path: Path) -> None:
    config = transformers.RobertaConfig(**{**TEXT, "num_hidden_layers": 1}, pad_token_id=3)
    spec = save(transformers.RobertaForMaskedLM(config), tmp_path)
    assert load_model(spec).inputs[0].shape == (12,)
    with pytest.raises(InputError, match=r"context is 13 tokens; .* takes 2 to 12"):
        load_model(spec, context=13)


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def drop_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def only_pickles(folder: Path) -> None:
    drop_weights(folder)
    torch.save({}, folder / "pytorch_model.bin")


def index(folder: Path, value: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps(value))


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors")


GATE = "model.layers.0.mlp.gate_proj.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "there is no config.json in"),
        (lambda folder: (folder / "config.json").write_text("[1]"), "holds a list; it must hold an object"),
        (lambda folder: (folder / "config.json").write_text("{"), "is not JSON"),
        (lambda folder: (folder / "config.json").write_text("[" * 10**5), "is not JSON"),
        (lambda folder: edit(folder, auto_map={"AutoModel": "evil.Model"}), "code of its own .auto_map."),
        (lambda folder: edit(folder, rope=[{"auto_map": {}}]), "code of its own .auto_map."),
        (lambda folder: edit(folder, quantization_config={"bits": 4}), "is quantized already"),
        (lambda folder: edit(folder, architectures=None), "has the architectures None; it must name one"),
        (lambda folder: edit(folder, architectures=["os"]), "architecture 'os', which is not a causal"),
        (lambda folder: edit(folder, architectures=["LlamaModel"]), "'LlamaModel', which is not a causal"),
        (lambda folder: edit(folder, model_type="none"), "does not take"),
        (lambda folder: edit(folder, num_hidden_layers=10**9), "num_hidden_layers = 1,000,000,000; at most"),
        (lambda folder: edit(folder, hidden_size="wide"), "does not take|cannot build"),
        (
            lambda folder: edit(folder, intermediate_size=64),
            r"6 of another shape .* \(48, 32\) where",
        ),
        (drop_weights, "has no weights; it must have model.safetensors"),
        (only_pickles, "has only pytorch_model.bin, which could run code when loaded"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 64), "cannot read weights"),
        (lambda folder: index(folder, {}), "has no weight_map"),
        (lambda folder: index(folder, {"weight_map": {"w": "../x.safetensors"}}), "name in that folder"),
        (lambda folder: index(folder, {"weight_map": {"w": "/x.safetensors"}}), "name in that folder"),
        (lambda folder: index(folder, {"weight_map": {"w": "x.bin"}}), "name in that folder"),
        (lambda folder: index(folder, {"weight_map": {"w": "x.safetensors"}}), "lacks x.safetensors"),
        (
            lambda folder: index(folder, {"weight_map": {"w": "model.safetensors"}}),
            "'w' is in model",
        ),
        (lambda folder: change_tensors(folder, lambda given: given.pop(GATE)), f"1 missing .{GATE}."),
        (
            lambda folder: change_tensors(folder, lambda given: given[GATE].fill_(torch.nan)),
            f"'{GATE}' has 1,536 values of 1,536 that are NaN",
        ),
        (
            lambda folder: change_tensors(
                folder, lambda given: given.update({GATE: given[GATE].to(torch.float8_e4m3fn)})
            ),
            f"holds '{GATE}' as F8_E4M3; weights must be",
        ),
    ],
)
def test_a_folder_that_cannot_be_read_is_refused_with_the_reason(
    copied: Path, damage: Callable[[Path], Any], message: str
) -> None:
    damage(copied)
    with pytest.raises(InputError, match=message) as caught:
        load_model(f"hf:{copied}")
    assert "\n" not in str(caught.value)


def test_what_is_no_folder_or_has_other_weights_is_refused(llama: Path) -> None:
    with pytest.raises(InputError, match="there is no folder nowhere"):
        load_model("hf:nowhere")
    with pytest.raises(InputError, match="leave --weights out"):
        load_model(f"hf:{llama}", weights=llama / "model.safetensors")


def test_without_the_library_the_message_says_what_to_install(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r'pip install "apportion\[transformers\]"'):
        load_model(f"hf:{llama}")
