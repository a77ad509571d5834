"""Held-out quality of plans at equal average bits: uniform, per layer, per channel, and 4-bit points only.

    python benchmarks/plans.py cifar10_resnet20 mobilenetv1_075_in1k vit_tiny_in1k

Scores and plans see calibration images only; every plan is then measured on other images. Bits count
everything that is stored for the quantized weights: codes, steps, and the codes that name a channel's option.
"""

from __future__ import annotations

import argparse
import math
import time

import torch
from matplotlib.figure import Figure
from networks import NETWORKS, RESNET, VIT, Subject, load_subject
from report import RESULTS, Table, write_report

from apportion.errors import InfeasibleError
from apportion.network import float_logits
from apportion.quantizer import parse_options
from apportion.reconstruct import finalize_nearest, measure_finalized
from apportion.sensitivity import (
    Profile,
    ProfileArrays,
    best_uniform_plan,
    measure_profile,
    solve_plan,
)

BUDGETS = ("3.0b", "3.5b", "4.0b", "4.5b", "5.0b", "6.0b")
COMPARED = ("3.5b", "4.0b", "4.5b", "5.0b", "6.0b")
UNIFORM, EXACT, LAYER, CHANNEL, POINTS = (
    "best uniform",
    "per layer, exact scores",
    "per layer, Fisher scores",
    "per channel, Fisher scores",
    "4-bit points only, per channel",
)
METHODS = (UNIFORM, EXACT, LAYER, CHANNEL, POINTS)
FISHER_SAMPLES = {RESNET: 1024, VIT: 256}
EXACT_SAMPLES = {RESNET: 512}

Scored = tuple[Profile, ProfileArrays | None]


def main() -> None:
    """Measure the networks named on the command line, one report each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.networks:
        measure(name)


def measure(name: str) -> None:
    """Write results/plans_<name>.{json,md,png}."""
    subject = load_subject(name, FISHER_SAMPLES.get(name, 512))
    few = load_subject(name, EXACT_SAMPLES.get(name, 64)).calibration
    began = time.perf_counter()
    options = parse_options("w2..8")
    fisher = measure_profile(subject.network, subject.calibration, options)
    print(f"{name}: Fisher scores {time.perf_counter() - began:.0f} s", flush=True)
    exact = measure_profile(subject.network, few, options, method="exact")
    print(f"{name}: exact scores {time.perf_counter() - began:.0f} s", flush=True)
    four = measure_profile(subject.network, subject.calibration, parse_options("w4x1..2"))
    reference = float_logits(subject.network, subject.held_out)
    cells: dict[str, dict[str, dict[str, float | str] | None]] = {method: {} for method in METHODS}
    for budget in BUDGETS:
        for method in METHODS:
            cells[method][budget] = _cell(subject, reference, method, budget, fisher, exact, four)
            print(budget, method, cells[method][budget], flush=True)
    _write(subject, cells, few.name)


def _cell(
    subject: Subject,
    reference: torch.Tensor,
    method: str,
    budget: str,
    fisher: Scored,
    exact: Scored,
    four: Scored,
) -> dict[str, float | str] | None:
    """Measured quality of one plan, or None where no choice meets the budget."""
    scored = {EXACT: exact, POINTS: four}.get(method, fisher)
    unit = "channel" if method in (CHANNEL, POINTS) else "layer"
    try:
        plan = solve_plan(*scored, budget, unit)
    except InfeasibleError:
        return None
    if method == UNIFORM:
        uniform = best_uniform_plan(scored[0], plan)
        if uniform is None:
            return None
        plan = uniform
    assert plan.complexity.average_bits <= float(budget.removesuffix("b"))
    quality = measure_finalized(
        subject.network, finalize_nearest(subject.network, plan), subject.held_out, reference
    )
    return {
        "kl": quality.loss,
        "standard_error": quality.standard_error,
        "accuracy": quality.accuracy or 0.0,
        "float_accuracy": quality.float_accuracy or 0.0,
        "predicted": plan.predicted_loss,
        "average_bits": plan.complexity.average_bits,
        "relative_gap": plan.certificate.relative_gap if plan.certificate else 0.0,
        "stored_as": plan.layers[0].option or "mixed",
    }


def _write(subject: Subject, cells: dict[str, dict[str, dict[str, float | str] | None]], few: str) -> None:
    ratio = _geometric_mean(cells, CHANNEL, LAYER)
    against_uniform = _geometric_mean(cells, CHANNEL, UNIFORM)
    some = next(cell for cell in cells[LAYER].values() if cell)
    tables = [
        Table(
            f"{quantity} on held-out images",
            ["average stored bits", *BUDGETS],
            [[method, *(_shown(cells[method][budget], key) for budget in BUDGETS)] for method in METHODS],
        )
        for quantity, key in (("KL to the float network", "kl"), ("Top-1 in percent", "accuracy"))
    ]
    notes = [
        f"{subject.name}, nearest rounding, weights only, options w2 to w8 with one step per channel. "
        f"Fisher scores from {subject.calibration.name}, exact ones from {few}; judged on "
        f"{subject.held_out.name}. Float top-1 {100 * float(some['float_accuracy']):.2f}%. All plans are "
        "within the budget with overheads counted. A dash: no choice fits (one 4-bit point and its step take "
        "more than 4 bits).",
        "Per channel against per layer (both Fisher), geometric mean of the KL ratio over "
        f"{', '.join(COMPARED)}: **{ratio:.3f}**. Per channel against the best uniform option that fits: "
        f"{against_uniform:.3f}.",
    ]
    name = f"plans_{subject.name}"
    write_report(
        name,
        f"Plans at equal size: {subject.name}",
        f"python benchmarks/plans.py {subject.name}",
        tables,
        notes,
        {"cells": cells, "channel_over_layer": ratio, "channel_over_uniform": against_uniform},
    )
    _draw(subject, cells).savefig(RESULTS / f"{name}.png", dpi=120)


def _geometric_mean(
    cells: dict[str, dict[str, dict[str, float | str] | None]], method: str, other: str
) -> float:
    logs = []
    for budget in COMPARED:
        one, two = cells[method][budget], cells[other][budget]
        if one and two:
            logs.append(math.log(float(one["kl"]) / float(two["kl"])))
    return math.exp(sum(logs) / len(logs))


def _shown(cell: dict[str, float | str] | None, key: str) -> object:
    if cell is None:
        return None
    return round(100 * float(cell[key]), 2) if key == "accuracy" else float(cell[key])


def _draw(subject: Subject, cells: dict[str, dict[str, dict[str, float | str] | None]]) -> Figure:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    styles = zip(METHODS, ("#000000", "#0072B2", "#56B4E9", "#D55E00", "#009E73"), "xsodv", strict=True)
    for method, color, marker in styles:
        points = [(float(cell["average_bits"]), float(cell["kl"])) for cell in cells[method].values() if cell]
        axes.plot(*zip(*points, strict=True), color=color, marker=marker, label=method)
    axes.set_yscale("log")
    axes.set_xlabel("average stored bits per weight, overheads included")
    axes.set_ylabel("KL to the float network, held-out images")
    axes.set_title(subject.name)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main()
