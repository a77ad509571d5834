"""The page of `big_network.py`: what was measured, and what follows for larger networks."""

from __future__ import annotations

import json
from typing import Any

from matplotlib.figure import Figure
from report import RESULTS, Table, write_report

__all__ = ["kept", "report"]

NAME = "big_network"
STAGES = ("profile", "solve", "finalize")
LLAMA_70B = {"hidden": 8192, "intermediate": 28672, "layers": 80, "kept": 1024, "vocabulary": 32000}
GB = 1e9


def kept() -> dict[str, Any]:
    """What was measured before."""
    path = RESULTS / f"{NAME}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["data"] if path.exists() else {}
    return found


def report(found: dict[str, Any]) -> None:
    """Write results/big_network.{md,json,png}."""
    tables = [
        Table(
            "Peak memory of every stage, GB (10^9 bytes)",
            [
                "network", "weights", "as float32", "--memory", "at start", *STAGES
            ],
            [_memory_row(name, each) for name, each in found.items()],
        ),
        *_on_device(found),
        Table(
            "Seconds",
            [
                "network", "capture", "scores", "solve", "GPTQ", "measure", "save", "scores per layer",
                "GPTQ per layer",
            ],
            [_seconds_row(name, each) for name, each in found.items()],
        ),
        Table(
            "What was made",
            [
                "network", "predicted loss", "GPTQ, its own samples", "GPTQ, others", "nearest, others",
                "float32, MB", "packed, MB",
            ],
            [_made_row(name, each) for name, each in found.items()],
        ),
        Table("On paper: Llama 2 70B", ["what", "GB"], _paper(3)),
    ]  # fmt: skip
    write_report(
        NAME, "Big networks on small memory",
        "python benchmarks/big_network.py; and with --wide 22; and with --wide 22 --device cuda",
        tables, _notes(found), found,
    )  # fmt: skip
    _draw(found).savefig(RESULTS / f"{NAME}.png", dpi=120)


def _memory_row(name: str, each: dict[str, Any]) -> list[object]:
    peaks = [each[stage]["peak_bytes"] / GB if stage in each else None for stage in STAGES]
    whole = 4 * each["weights"] / GB
    return [name, each["weights"], whole, each["size"]["memory_bytes"] / GB, _start(each), *peaks]


def _on_device(found: dict[str, Any]) -> list[Table]:
    """What networks that were on a GPU took there."""
    rows = []
    for name, each in found.items():
        peaks = [each.get(stage, {}).get("device_peak_bytes") for stage in ("profile", "finalize")]
        if any(peaks):
            rows.append([name, *(None if peak is None else peak / GB for peak in peaks)])
    return [Table("Peak memory on the GPU, GB", ["network", "profile", "finalize"], rows)] if rows else []


def _start(each: dict[str, Any]) -> float:
    return float(each["profile"]["start_bytes"]) / GB


def _seconds_row(name: str, each: dict[str, Any]) -> list[object]:
    layers = each["size"]["layers"]
    profile, solve, finalize = (each.get(stage, {}).get("seconds", {}) for stage in STAGES)
    gptq = finalize.get("gptq")
    return [
        name, profile["capture"], profile["scores"], solve.get("solve"), gptq, finalize.get("measure"),
        finalize.get("save"), profile["scores"] / layers, None if gptq is None else gptq / layers,
    ]  # fmt: skip


def _made_row(name: str, each: dict[str, Any]) -> list[object]:
    finalize = each.get("finalize", {})
    packed = finalize.get("packed_bytes")
    return [
        name, each.get("solve", {}).get("predicted_loss"), finalize.get("loss"),
        finalize.get("loss_on_others"), finalize.get("nearest_on_others"), 4 * each["weights"] / 1e6,
        None if packed is None else packed / 1e6,
    ]  # fmt: skip


def _paper(options: int) -> list[list[object]]:
    """Bytes that the largest layer asks for, from the shapes alone."""
    wide, inner = LLAMA_70B["hidden"], LLAMA_70B["intermediate"]
    largest, head = wide * inner, LLAMA_70B["vocabulary"] * wide
    weights = LLAMA_70B["layers"] * (2 * wide**2 + 2 * wide * LLAMA_70B["kept"] + 3 * largest) + 2 * head
    return [
        ["all weights as float32", 4 * weights / GB],
        ["all weights in shards of bfloat16, on disk", 2 * weights / GB],
        ["the largest layer (lm_head) as float32", 4 * head / GB],
        [f"scores: its changes under {options} options", 4 * options * head / GB],
        ["GPTQ: Gram matrix of 28,672 inputs, double, each of about ten at the peak", 8 * inner**2 / GB],
        ["codes of finished layers, on disk until they are packed", weights / GB],
    ]


def _notes(found: dict[str, Any]) -> list[str]:
    deep = _deep(found)
    notes = [
        "Llamas of random weights, in shards of bfloat16, one per layer; 8 samples of 32 random tokens; "
        "options w3, w4, w6, a plan per layer at 4 bits, GPTQ. Weights stay in their files and are read "
        "layer by layer; `--memory` is the bound that the stages are given. Each stage is a process of its "
        "own; its peak is VmHWM, in which pages of mapped files count, and *at start* is what Python, torch "
        "and this package take before anything is loaded.",
        "![Peak memory and time over depth](big_network.png)",
    ]
    if len(deep) > 1:
        low, high = deep[0], deep[-1]
        more = high["size"]["layers"] - low["size"]["layers"]
        growth = [(high[stage]["peak_bytes"] - low[stage]["peak_bytes"]) / 1e6 / more for stage in STAGES]
        weights = 4 * (high["weights"] - low["weights"]) / 1e6 / more
        notes.append(
            f"From {low['size']['layers']} to {high['size']['layers']} layers the peaks grow by "
            f"{growth[0]:.1f} MB a layer (profile), {growth[1]:.1f} MB (solve) and {growth[2]:.1f} MB "
            f"(finalize), where a layer of this width weighs {weights:.0f} MB as float32. The nodes of the "
            "program and the scores of channels stay in memory. The C library of Linux "
            "keeps freed tensors in a heap with gaps; as in the command, those of 32 KiB and more are kept "
            "out of it. With 1 MiB in place of that the peaks of these depths grew by 4.7 MB (profile) and "
            "5.6 MB (finalize) a layer."
        )
    notes.append(
        "Seconds were taken on two cores that other work shared: they compare stages and depths, and are no "
        "measure of speed."
    )
    notes.append(
        "The networks are random and so are their 256 tokens, which say next to nothing of others: GPTQ "
        "damps its sums as one half of the samples asks of the other, and stays close to rounding to nearest."
    )
    notes.append(
        "On paper, a network of 70 billion weights: no weights, codes or activations of more than one "
        "segment are in memory, so what one layer asks for decides. GPTQ's Gram matrices grow with the "
        "square of a layer's inputs and call for about 62 GB at 28,672 of them; its time per layer grows "
        "with inputs squared times outputs, and with inputs cubed. This has not been run."
    )
    return notes


def _deep(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The networks of one width whose stages are all done."""
    return [each for each in found.values() if each["size"]["hidden"] == 512 and "finalize" in each]


def _draw(found: dict[str, Any]) -> Figure:
    """Peaks and seconds over the number of layers, of the networks of one width."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    deep = _deep(found)
    layers = [each["size"]["layers"] for each in deep]
    for stage in STAGES:
        left.plot(layers, [each[stage]["peak_bytes"] / GB for each in deep], "o-", label=stage)
        right.plot(layers, [sum(each[stage]["seconds"].values()) for each in deep], "o-", label=stage)
    left.plot(layers, [4 * each["weights"] / GB for each in deep], "k:", label="all weights, float32")
    left.set(xlabel="layers", ylabel="peak memory, GB", ylim=(0, None))
    right.set(xlabel="layers", ylabel="seconds", ylim=(0, None))
    left.legend(frameon=False, loc="center", bbox_to_anchor=(0.5, 0.63))
    right.legend(frameon=False, loc="upper left")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
