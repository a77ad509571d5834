"""The whole job on a GPU: the same plans, and weights as good, as on the CPU."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import apportion

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

METHODS = {
    "nearest": ("--method", "nearest"),
    "gptq": ("--method", "gptq", "--correct", "bias", "--correct", "batch-norm", "--correct", "tune"),
    "adaquant": ("--method", "adaquant", "--iterations", "20", "--after", "adaquant"),
    "lapq": ("--method", "lapq"),
    "adaround": ("--method", "adaround", "--iterations", "20"),
    "brecq": ("--method", "brecq", "--iterations", "20", "--block-loss", "fisher", "--drop", "0.5"),
}
OPTIONS = {
    "points and groups": ("4b", "w2,w4,w2x2,w3g16", "channel"),
    "activations": ("5b", "w4a4,w4a8,w8a8", "layer"),
}


def losses(allocate: Any, folder: Path, *arguments: str) -> list[float]:
    """The measured loss of one command on the CPU and on CUDA."""
    found = []
    for device in "cpu", "cuda":
        out = folder / device
        done = allocate(*arguments, "--samples", "64", "--quiet", "--device", device, "--out", out)
        assert done.code == 0, done.err
        measured = apportion.read_plan(out / "plan.json").measured
        assert measured is not None
        found.append(measured.loss)
    return found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", OPTIONS)
def test_every_method_gives_weights_as_good_as_on_the_cpu(
    allocate: Any, tmp_path: Path, method: str, options: str
) -> None:
    budget, some, unit = OPTIONS[options]
    on_cpu, on_cuda = losses(
        allocate, tmp_path, "--budget", budget, "--options", some, "--unit", unit, *METHODS[method]
    )
    # Both are sums in another order, after which other draws and roundings may follow.
    assert on_cpu / 3 < on_cuda < 3 * on_cpu


@pytest.mark.parametrize(
    "scores",
    [("--labels", "all"), ("--labels", "sampled"), ("--scores", "exact", "--unit", "layer")],
    ids=" ".join,
)
def test_scores_are_those_of_the_cpu(allocate: Any, tmp_path: Path, scores: tuple[str, ...]) -> None:
    found = []
    for device in "cpu", "cuda":
        out = tmp_path / device
        arguments = ("--samples", "64", "--options", "w2,w4,w8", "--after", "nearest", "--quiet", *scores)
        done = allocate("profile", *arguments, "--device", device, "--out", out)
        assert done.code == 0, done.err
        found.append(apportion.read_profile(out / "profile.json")[0])
    for one, other in zip(found[0].layers, found[1].layers, strict=True):
        assert [score.loss for score in one.scores] == pytest.approx(
            [score.loss for score in other.scores], rel=0.02, abs=1e-6
        )


@pytest.mark.parametrize("search", [("--lossless",), ("--max-drop", "0.05kl")], ids=" ".join)
def test_searches_end_within_their_limit(allocate: Any, tmp_path: Path, search: tuple[str, ...]) -> None:
    done = allocate(*search, "--options", "w2,w4,w8", "--samples", "64", "--quiet", "--device", "cuda",
                    "--method", "gptq", "--out", tmp_path)  # fmt: skip
    assert done.code == 0, done.err


@pytest.mark.parametrize("memory", ["2GiB", "1MiB"])
def test_a_language_model_in_memory_and_layer_by_layer(allocate: Any, tmp_path: Path, memory: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers: Any = pytest.importorskip("transformers")
        torch.manual_seed(0)
        settings = transformers.LlamaConfig(
            vocab_size=48, hidden_size=128, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, intermediate_size=192, max_position_embeddings=64,
        )  # fmt: skip
        transformers.LlamaForCausalLM(settings).save_pretrained(tmp_path / "llama", max_shard_size="300KB")
    np.savez(tmp_path / "ids.npz", inputs=np.random.default_rng(0).integers(0, 48, (12, 16)))
    on_cpu, on_cuda = losses(
        allocate, tmp_path, "--budget", "5b", "--options", "w4a8,w8a8,w4g16a8", "--model",
        f"hf:{tmp_path / 'llama'}", "--data", str(tmp_path / "ids.npz"), "--memory", memory,
        "--method", "gptq",
    )  # fmt: skip
    assert on_cpu / 3 < on_cuda < 3 * on_cpu
