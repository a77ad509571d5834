"""A language model that is larger than its memory bound: time and peak memory of every stage.

    python benchmarks/big_network.py            # three depths of one width
    python benchmarks/big_network.py --wide 22  # the whole of that network
    python benchmarks/big_network.py --wide 22 --device cuda

Networks are Llamas of random weights in shards of bfloat16, one for each layer. Every stage runs in a process
of its own, whose peak is VmHWM: what the process had in memory at most, pages of mapped files included.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from bench import DEVICES, device_name
from big_network_report import kept, report
from safetensors.torch import save_file

from apportion.allocator import read_plan, write_plan
from apportion.export import save_network
from apportion.network import Data, Network, give_back_freed_memory, load_model
from apportion.quantizer import parse_options
from apportion.reconstruct import Gptq, Nearest, measure_finalized
from apportion.sensitivity import FisherSettings, measure_profile, read_profile, solve_plan, write_profile

STAGES = ("profile", "solve", "finalize")
BUDGET, OPTIONS = "4b", "w3,w4,w6"


@dataclass(frozen=True)
class Size:
    """A Llama, what it is measured on, and the bound that its stages are given."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    shared: int
    vocabulary: int
    samples: int
    tokens: int
    memory_bytes: int

    @property
    def weights(self) -> int:
        """Of all matrices, the embedding included."""
        kept = self.hidden * self.shared // self.heads
        block = 2 * self.hidden**2 + 2 * self.hidden * kept + 3 * self.hidden * self.intermediate
        return self.layers * block + 2 * self.vocabulary * self.hidden


def depth(layers: int) -> Size:
    """One width at several depths."""
    return Size(512, 1408, layers, 8, 4, 4000, 8, 32, 2**24)


def wide(layers: int) -> Size:
    """The layers of a network that has 22 of them, and 1.1 billion weights."""
    return Size(2048, 5632, layers, 32, 4, 32000, 8, 32, 2**31)


def main() -> None:
    """Measure and write results/big_network.{md,json,png}."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wide", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=DEVICES)
    parser.add_argument("--stage", choices=STAGES)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--size", type=json.loads)
    parser.add_argument("--only-report", action="store_true")
    given = parser.parse_args()
    if given.stage:
        torch.set_num_threads(given.threads)
        print(json.dumps(run_stage(given.stage, given.folder, Size(**given.size), given.device)), flush=True)
        return
    sizes = [wide(given.wide)] if given.wide else [depth(layers) for layers in (4, 8, 16)]
    for size in () if given.only_report else sizes:
        name = f"{size.layers} layers, {size.hidden} wide"
        if given.device != "cpu":
            name = f"{name}, {device_name(given.device)}"
        for result in measured(name, size, given.threads, given.device):
            report({**kept(), name: result})
    report(kept())


def measured(name: str, size: Size, threads: int, device: str) -> Iterator[dict[str, Any]]:
    """What is known after each stage of one network; each is a process of its own."""
    result: dict[str, Any] = {
        "size": asdict(size),
        "weights": size.weights,
        "threads": threads,
    }
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        began = time.perf_counter()
        write_llama(folder / "model", size)
        result["write"] = time.perf_counter() - began
        result["shard_bytes"] = sum(path.stat().st_size for path in (folder / "model").glob("*.safetensors"))
        for stage in STAGES:
            done = subprocess.run(
                [
                    sys.executable, __file__, "--stage", stage, "--folder", str(folder),
                    "--size", json.dumps(asdict(size)), "--threads", str(threads), "--device", device,
                ],
                check=True, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            result[stage] = json.loads(done.stdout.splitlines()[-1])
            print(name, stage, result[stage], flush=True)
            yield result


def write_llama(folder: Path, size: Size) -> None:
    """Random weights with the scale of a fresh network, a shard for each layer."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    wide, kept = size.hidden, size.hidden * size.shared // size.heads

    def drawn(*shape: int, scale: float = 0.02) -> torch.Tensor:
        return (scale * torch.randn(shape, generator=generator)).to(torch.bfloat16)

    out = 0.02 / (2 * size.layers) ** 0.5
    places: dict[str, str] = {}

    def save(name: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, folder / name)
        places.update(dict.fromkeys(tensors, name))

    save("ends.safetensors", {
        "model.embed_tokens.weight": drawn(size.vocabulary, wide),
        "lm_head.weight": drawn(size.vocabulary, wide, scale=0.05),
        "model.norm.weight": torch.ones(wide, dtype=torch.bfloat16),
    })  # fmt: skip
    for number in range(size.layers):
        at = f"model.layers.{number}"
        save(f"layer-{number:03d}.safetensors", {
            f"{at}.self_attn.q_proj.weight": drawn(wide, wide),
            f"{at}.self_attn.k_proj.weight": drawn(kept, wide),
            f"{at}.self_attn.v_proj.weight": drawn(kept, wide),
            f"{at}.self_attn.o_proj.weight": drawn(wide, wide, scale=out),
            f"{at}.mlp.gate_proj.weight": drawn(size.intermediate, wide),
            f"{at}.mlp.up_proj.weight": drawn(size.intermediate, wide),
            f"{at}.mlp.down_proj.weight": drawn(wide, size.intermediate, scale=out),
            f"{at}.input_layernorm.weight": torch.ones(wide, dtype=torch.bfloat16),
            f"{at}.post_attention_layernorm.weight": torch.ones(wide, dtype=torch.bfloat16),
        })  # fmt: skip
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.shared,
        "vocab_size": size.vocabulary,
        "max_position_embeddings": size.tokens,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }))  # fmt: skip


def run_stage(stage: str, folder: Path, size: Size, device: str) -> dict[str, Any]:
    """Carry out one stage; seconds of its parts, and the peak of this process."""
    seconds: dict[str, float] = {}
    # As the command does for such networks.
    give_back_freed_memory()
    found: dict[str, Any] = {"start_bytes": _status_bytes("VmRSS"), "seconds": seconds}
    clock = time.perf_counter()

    def took(part: str) -> None:
        nonlocal clock
        seconds[part] = round(time.perf_counter() - clock, 2)
        clock = time.perf_counter()
        found["peak_bytes"] = _status_bytes("VmHWM")
        print(
            f"  {part}: {seconds[part]} s, peak {found['peak_bytes'] / 1e9:.2f} GB",
            file=sys.stderr,
            flush=True,
        )

    if stage == "profile":
        network, data = _inputs(folder, size, device)
        took("capture")
        settings = FisherSettings(share=1.0, memory_bytes=size.memory_bytes)
        profile, arrays = measure_profile(
            network, data, parse_options(OPTIONS), settings=settings, store=folder / "parts"
        )
        took("scores")
        write_profile(folder / "profile.json", profile, arrays)
        took("save")
    elif stage == "solve":
        profile, arrays = read_profile(folder / "profile.json")
        plan = solve_plan(profile, arrays, BUDGET, "layer")
        write_plan(folder / "plan.json", plan)
        found["predicted_loss"] = plan.predicted_loss
        took("solve")
    else:
        network, data = _inputs(folder, size, device)
        other = replace(data, inputs=_ids(size, seed=2), name="other random tokens")
        plan = read_plan(folder / "plan.json")
        took("capture")
        gptq = Gptq(memory_bytes=size.memory_bytes)
        finalized = gptq.finalize(network, plan, data, store=folder / "weights")
        took("gptq")
        found["loss"] = measure_finalized(network, finalized, data).loss
        found["loss_on_others"] = measure_finalized(network, finalized, other).loss
        nearest = Nearest().finalize(network, plan, data)
        found["nearest_on_others"] = measure_finalized(network, nearest, other).loss
        took("measure")
        save_network(folder / "run", network, plan, finalized)
        took("save")
        found["packed_bytes"] = (folder / "run" / "weights.safetensors").stat().st_size
    if device == "cuda":
        found["device_peak_bytes"] = torch.cuda.max_memory_allocated()
    return found


def _inputs(folder: Path, size: Size, device: str) -> tuple[Network, Data]:
    network = load_model(f"hf:{folder / 'model'}", context=size.tokens, memory_bytes=size.memory_bytes)
    assert network.is_streamed
    return network.to(device), Data(_ids(size, seed=1), None, "random tokens")


def _ids(size: Size, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, size.vocabulary, (size.samples, size.tokens), generator=generator)


def _status_bytes(field: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    match = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    assert match is not None
    return 1024 * int(match[1])


if __name__ == "__main__":
    main()
