"""Language models from a local folder through the whole job: texts, perplexity, ties, experts."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import apportion

with warnings.catch_warnings():
    # The library's own, on import.
    warnings.simplefilter("ignore")
    transformers: Any = pytest.importorskip("transformers")
tokenizers: Any = pytest.importorskip("tokenizers")

WORDS = [f"word{number}" for number in range(40)]
SMALL = {
    "vocab_size": 48,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "bos_token_id": 41,
    "eos_token_id": 42,
}
FAST = ("--samples", "12", "--options", "w2,w4,w8,w4g16", "--unit", "layer")


def save(module: Any, folder: Path) -> None:
    """The model with its tokenizer, as folders of the library are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module.save_pretrained(folder)
    vocabulary = {word: number for number, word in enumerate([*WORDS, "[UNK]"])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose table is its last layer, and two texts."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    save(transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, tie_word_embeddings=True)), folder)
    generator = torch.Generator().manual_seed(0)
    for name, count in (("calibration", 700), ("judging", 300)):
        drawn = torch.randint(0, 30, (count,), generator=generator).tolist()
        (folder / f"{name}.txt").write_text(" ".join(WORDS[number] for number in drawn))
    return folder


@pytest.fixture(scope="module")
def source(folder: Path) -> tuple[str, ...]:
    texts = ("--data", folder / "calibration.txt", "--eval-data", folder / "judging.txt")
    return ("--model", f"hf:{folder}", *map(str, texts))


def test_the_whole_job_states_perplexity_and_context(
    allocate: Any, source: tuple[str, ...], tmp_path: Path
) -> None:
    done = allocate("--budget", "5b", *source, *FAST, "--context", 16, "--method", "gptq", "--out", tmp_path)
    assert done.code == 0, done.err
    assert "18 samples of 16 tokens" in " ".join(done.out.split())
    assert "perplexity" in done.out
    plan = json.loads((tmp_path / "plan.json").read_text())
    measured = plan["measured"]
    assert measured["context"] == 16
    # A random network knows nothing: its perplexity is near the number of its tokens.
    assert 30 < measured["float_perplexity"] < 70
    assert measured["perplexity"] == pytest.approx(measured["float_perplexity"], rel=0.2)
    names = [layer["name"] for layer in plan["layers"]]
    assert names[0] == "model.embed_tokens"
    assert "lm_head" not in names
    again = allocate("evaluate", tmp_path, *source[:4], "--context", 16, "--json")
    assert again.json["context"] == 16


@pytest.mark.parametrize("unit", ["channel", "tile:8", "inputs:16"])
def test_every_unit_takes_tables_and_steps_per_group(
    allocate: Any, source: tuple[str, ...], tmp_path: Path, unit: str
) -> None:
    done = allocate(
        "--budget", "5.5b", *source[:4], "--context", 16, "--samples", 6, "--options", "w2g16,w4g16,w8g16",
        "--unit", unit, "--method", "gptq", "--out", tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["complexity"]["average_bits"] <= 5.5
    table = plan["layers"][0]
    assert table["name"] == "model.embed_tokens"
    assert table.get("cut") == ("inputs:16" if unit == "inputs:16" else None)


def test_the_default_context_is_what_the_model_takes(
    allocate: Any, source: tuple[str, ...], tmp_path: Path
) -> None:
    done = allocate("profile", *source[:4], *FAST, "--out", tmp_path)
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "profile.json").read_text())["samples"] == 700 // 64
    wide = allocate("profile", *source[:4], *FAST, "--context", 65, "--out", tmp_path / "wide")
    assert wide.code == 2
    assert "the context is 65 tokens" in wide.err
    assert "takes 2 to 64" in wide.err


def test_layers_that_read_one_value_can_be_tied(
    allocate: Any, source: tuple[str, ...], tmp_path: Path
) -> None:
    assert allocate("profile", *source[:4], *FAST, "--context", 16, "--out", tmp_path).code == 0
    solved = allocate("solve", "--budget", "5b", "--unit", "layer", "--tie", "auto", "--out", tmp_path)
    assert solved.code == 0, solved.err
    plan = json.loads((tmp_path / "plan.json").read_text())
    option = {layer["name"].removeprefix("model.layers.0."): layer["option"] for layer in plan["layers"]}
    assert len({option[f"self_attn.{part}_proj"] for part in "qkv"}) == 1
    assert option["mlp.gate_proj"] == option["mlp.up_proj"]
    tied = [set(group) for group in plan["constraints"]["tie"]]
    assert {f"model.layers.0.self_attn.{part}_proj" for part in "qkv"} in tied
    assert {f"model.layers.0.mlp.{part}_proj" for part in ("gate", "up")} in tied


def test_experts_that_are_never_chosen_are_named_and_scored(
    allocate: Any, folder: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = transformers.MixtralConfig(**SMALL, num_local_experts=3, num_experts_per_tok=1)
    module = transformers.MixtralForCausalLM(config)
    router = module.model.layers[0].mlp.gate.weight.data
    # The third is never the greatest.
    router[1], router[2] = -router[0], 0
    save(module, tmp_path / "model")
    done = allocate(
        "profile", "--model", f"hf:{tmp_path / 'model'}", "--data", folder / "calibration.txt",
        *FAST, "--context", 16, "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "no calibration sample reaches model.layers.0.mlp.experts.2.gate_proj" in done.err
    profile = json.loads((tmp_path / "run" / "profile.json").read_text())
    scores = {layer["name"]: [score["loss"] for score in layer["scores"]] for layer in profile["layers"]}
    for part in ("gate", "up", "down"):
        name = f"model.layers.0.mlp.experts.{{}}.{part}_proj"
        assert profile["unused"][name.format(2)] == (32 if part == "down" else 48)
        assert all(loss > 0 for loss in scores[name.format(2)])
        # Once against hundreds of times.
        assert scores[name.format(2)][0] < 0.2 * max(scores[name.format(0)][0], scores[name.format(1)][0])
    assert profile["unused"]["model.embed_tokens"] == 48 - 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--context", "16", "--data", "ids.npz"), "--context is 16, and .*ids.npz has samples of 8 tokens"),
        (("--tokenizer", "nowhere"), "there is no tokenizer.json or tokenizer.model in nowhere"),
        (("--context", "60", "--data", "short.txt"), "has 3 tokens, and a sample has 60"),
    ],
)
def test_texts_that_do_not_fit_are_refused(
    allocate: Any, source: tuple[str, ...], tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    np.savez(tmp_path / "ids.npz", inputs=np.zeros((4, 8), np.int64))
    (tmp_path / "short.txt").write_text("word1 word2 word3")
    given = [str(tmp_path / part) if part in ("ids.npz", "short.txt") else part for part in arguments]
    base = source[:2] if "--data" in given else source[:4]
    done = allocate("profile", *base, *given, "--out", tmp_path / "run")
    assert done.code == 2
    assert re.search(message, " ".join(done.err.split()))


def test_networks_larger_than_the_memory_are_scored_by_nearest_rounding_unless_asked(
    allocate: Any, tmp_path: Path
) -> None:
    sizes = SMALL | {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2}
    torch.manual_seed(0)
    save(transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)), tmp_path / "llama")
    np.savez(tmp_path / "tokens.npz", inputs=np.arange(64).reshape(4, 16) % 40)
    common = ("--model", f"hf:{tmp_path / 'llama'}", "--data", tmp_path / "tokens.npz", "--budget", "3b")
    few = ("--options", "w2,w4", "--unit", "layer", "--method", "gptq", "--memory", "1MiB")
    for asked, after in ((), "nearest"), (("--after", "gptq"), "gptq"):
        outcome = allocate(*common, *few, *asked, "--out", tmp_path / after)
        assert outcome.code == 0, outcome
        (path,) = (tmp_path / after).glob("profile*.json")
        assert apportion.read_profile(path)[0].after == after
