"""Perplexity of a language model at equal sizes: uniform and allocated bits, rounded to nearest and by GPTQ.

    python benchmarks/language_model.py --threads 1

BabyLlama of the assets (characters, a context of 256, its table tied to its last layer), steps per group of
64 weights. Calibrated on one text and judged on another. Allocated by scores of nearest rounding, and by
those of what GPTQ makes of every option. Also how Fisher scores of its layers rank beside exact ones.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

import torch
from matplotlib.figure import Figure
from networks import WINDOW, Subject, load_tied_llama
from report import RESULTS, Table, write_report
from scipy.stats import spearmanr

from apportion.allocator import Plan
from apportion.network import Data, float_logits
from apportion.quantizer import Quantizer, parse_options
from apportion.reconstruct import Gptq, GptqOptions, Method, Nearest, measure_finalized
from apportion.sensitivity import (
    FisherSettings,
    Profile,
    ProfileArrays,
    best_uniform_plan,
    measure_profile,
    score_exact,
    score_fisher,
    solve_plan,
    uniform_plans,
)

OPTIONS = parse_options("w2..8g64")
NAMED = ("3b", "3.5b", "4b", "5b", "6b")
UNIFORM_SIZES = ("w3g64", "w4g64")
UNIFORM = "uniform"
UNITS = {"per layer": "layer", "per channel": "channel", "per 16 channels": "tile:16"}
METHODS: dict[str, Method] = {"nearest": Nearest(), "GPTQ": Gptq()}
AFTER_GPTQ = ", scores after GPTQ"
CALIBRATION, JUDGING, EXACT = 64, 96, 16

Scores = tuple[Profile, ProfileArrays | None]
Cell = dict[str, float]
Cells = dict[str, dict[str, Cell]]


def main() -> None:
    """Measure all and write results/language_model.{md,json,png}."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    began = time.process_time()
    subject = load_tied_llama(CALIBRATION, JUDGING)
    reference = float_logits(subject.network, subject.held_out)
    weights = GptqOptions(subject.network, subject.calibration, Quantizer(), unseen=True)
    scores = {
        "": measure_profile(subject.network, subject.calibration, OPTIONS),
        AFTER_GPTQ: measure_profile(
            subject.network, subject.calibration, OPTIONS, after="gptq", weights=weights
        ),
    }
    profile = scores[""][0]
    sizes = uniform_plans(profile)
    budgets = {
        **{f"{sizes[option].complexity.average_bits:.2f}b ({option})": option for option in UNIFORM_SIZES},
        **{budget: budget for budget in NAMED},
    }
    cells: Cells = {}
    for title in sorted(budgets, key=lambda title: float(title.split("b", 1)[0])):
        text = budgets[title]
        for name, plan in _plans(scores, text, sizes).items():
            for method, settings in METHODS.items():
                if method == "nearest" and name.endswith(AFTER_GPTQ):
                    continue
                finalized = settings.finalize(subject.network, plan, subject.calibration)
                quality = measure_finalized(subject.network, finalized, subject.held_out, reference)
                assert quality.perplexity is not None
                assert quality.float_perplexity is not None
                cells.setdefault(f"{name}, {method}", {})[title] = {
                    "average_bits": plan.complexity.average_bits,
                    "kl": quality.loss,
                    "perplexity": quality.perplexity,
                    "float_perplexity": quality.float_perplexity,
                    "accuracy": quality.accuracy or 0.0,
                }
                print(title, name, method, cells[f"{name}, {method}"][title], flush=True)
    agreement = _agreement(subject)
    _write(subject, profile, cells, agreement, time.process_time() - began)


def _plans(scores: dict[str, Scores], text: str, sizes: dict[str, Plan]) -> dict[str, Plan]:
    """The best uniform plan and the solved ones within a budget, or within the size of a uniform option."""
    budget = text
    if text in sizes:
        bits = sizes[text].complexity
        budget = f"{math.ceil(1e6 * bits.average_bits) / 1e6:.6f}b"
    found = {
        f"{name}{after}": solve_plan(*measured, budget, unit, time_limit_s=30.0)
        for after, measured in scores.items()
        for name, unit in UNITS.items()
    }
    uniform = sizes.get(text) or best_uniform_plan(scores[""][0], found["per layer"])
    return ({UNIFORM: uniform} if uniform is not None else {}) | found


def _agreement(subject: Subject) -> dict[str, float]:
    """Rank correlation of Fisher and exact scores, over all layers and options."""
    some = Data(subject.calibration.inputs[:EXACT], None, "some")
    fisher = score_fisher(subject.network, some, OPTIONS, Quantizer(), FisherSettings()).layer_loss()
    exact = score_exact(subject.network, some, OPTIONS, Quantizer()).loss
    ratio = (fisher / exact).log()
    return {
        "rank_correlation": float(spearmanr(fisher.flatten(), exact.flatten()).statistic),
        "mean_ratio": float(ratio.mean().exp()),
        "least_ratio": float(ratio.min().exp()),
        "greatest_ratio": float(ratio.max().exp()),
        "layers": len(fisher),
    }


def _write(
    subject: Subject, profile: Profile, cells: Cells, agreement: dict[str, float], seconds: float
) -> None:
    titles = list(next(iter(cells.values())))
    some = next(iter(next(iter(cells.values())).values()))
    table = subject.network.layers[0]

    def rows(key: str, scale: float = 1.0) -> list[list[Any]]:
        return [
            [name, *(scale * found[title][key] if title in found else None for title in titles)]
            for name, found in cells.items()
        ]

    header = ["bits by, rounded by", *titles]
    notes = [
        f"{subject.name}: {len(subject.network.layers)} layers, among them the table of {table.channels} "
        "characters, which is the last layer too and is counted once. Options w2g64 to w8g64, a 16-bit step "
        "per 64 weights; average stored bits with all overheads. Columns named by an option have the size of "
        "that option for all layers; in the others *uniform* is the best option that fits. Scores are of "
        "weights rounded to nearest, or where a row says so of what GPTQ makes of every option. Scores and "
        f"GPTQ see {subject.calibration.name}; judged on {subject.held_out.name}, by the next token of each "
        f"of their {JUDGING * WINDOW:,} tokens, with a context of at most {WINDOW}. Float perplexity "
        f"{some['float_perplexity']:.4f}.",
        f"Fisher scores against exact ones, {agreement['layers']:.0f} layers x {len(OPTIONS)} options, "
        f"{EXACT} windows: rank correlation **{agreement['rank_correlation']:.4f}**, ratio "
        f"{agreement['mean_ratio']:.2f} (geometric mean; {agreement['least_ratio']:.2f} to "
        f"{agreement['greatest_ratio']:.2f}).",
        f"{seconds:.0f} processor seconds in all.",
    ]
    write_report(
        "language_model",
        "A language model at equal sizes",
        "python benchmarks/language_model.py --threads 1",
        [
            Table("Perplexity on the held-out text", header, rows("perplexity")),
            Table("KL to the float network per token, nats", header, rows("kl")),
            Table("Average stored bits", header, rows("average_bits")),
        ],
        notes,
        {"cells": cells, "agreement": agreement, "unused": profile.unused},
    )
    _draw(subject, cells).savefig(RESULTS / "language_model.png", dpi=120)


def _draw(subject: Subject, cells: Cells) -> Figure:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    colors = dict(zip((UNIFORM, *UNITS), ("#000000", "#0072B2", "#D55E00", "#009E73"), strict=True))
    for name, found in cells.items():
        unit, by = name.split(", ", 1)
        points = sorted(
            (cell["average_bits"], 100 * (cell["perplexity"] / cell["float_perplexity"] - 1))
            for cell in found.values()
        )
        line, marker = {"nearest": ("--", "o"), "GPTQ": ("-", "s")}.get(by, (":", "^"))
        axes.plot(
            *zip(*points, strict=True),
            color=colors[unit],
            label=name,
            markersize=4,
            linestyle=line,
            marker=marker,
        )
    axes.set_yscale("log")
    axes.set_xlabel("average stored bits per weight, overheads included")
    axes.set_ylabel(f"rise of the perplexity in percent, context {WINDOW}, held-out text", fontsize=9)
    axes.set_title(f"{subject.name}, steps per 64 weights")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    main()
