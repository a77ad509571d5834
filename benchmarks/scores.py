"""Fisher scores against exact ones: agreement, and cost in plain forward passes over the same images.

    python benchmarks/scores.py --threads 1

Times are taken side by side in one run. Quantizing the options is common to both kinds of scores and is
reported on its own and within each total.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from networks import RESNET, VIT, Subject, load_subject
from report import Table, write_report
from scipy.stats import spearmanr

from apportion.network import batches
from apportion.quantizer import Option, Quantizer, parse_options
from apportion.sensitivity import FisherSettings, Labels, score_exact, score_fisher
from apportion.sensitivity.candidates import perturbations

TEN = "w2..8,w2x2,w3x2,w4x2"
THIRTY = "w2..8,w2..8t,w2..8g64,w2x2..4,w3x2,w4x2,w2x2..3g64,w3x2g64,w4x2g64"
CASES = ((RESNET, 512, TEN, True), (RESNET, 512, THIRTY, False), (VIT, 64, TEN, True))
SETTINGS = (
    ("projected, 2 draws (default)", FisherSettings()),
    ("projected, 1 draw", FisherSettings(draws=1)),
    ("sampled labels, 2 draws", FisherSettings(labels=Labels.SAMPLED)),
    ("projected, 2 draws, every image", FisherSettings(share=1.0)),
    ("all classes, every image", FisherSettings(labels=Labels.ALL, share=1.0)),
)
REPEATS = 3


def main() -> None:
    """Measure all cases and write results/scores.{json,md}."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    tables, data = [], []
    for name, samples, text, compare in CASES:
        subject = load_subject(name, samples)
        options = parse_options(text)
        rows, numbers = _case(subject, options, compare)
        title = f"{name}, {samples} images, {len(subject.network.layers)} layers x {len(options)} options"
        header = [
            "scores", "rank correlation", "geometric-mean ratio", "seconds", "in forward passes",
            "without quantizing", "exact costs, times",
        ]  # fmt: skip
        tables.append(Table(title, header, rows))
        data.append({"case": title, "options": text, **numbers})
        print(title, *rows, sep="\n", flush=True)
    notes = [
        f"Threads: {torch.get_num_threads()}. Rank correlation (Spearman) and geometric-mean ratio of "
        "Fisher to exact scores, over all layers and options. Exact scores replay the network from the "
        "changed layer on (prefix reuse). One forward pass is one pass of the float network over the same "
        "images in batches of 64 under inference mode, the median of repeats taken before, between and "
        "after. *Quantizing* is the step search and point fit of every option, needed by both kinds of "
        "scores; totals include it, the column 'without quantizing' does not.",
    ]
    title = "Fisher scores against exact scores"
    write_report("scores", title, "python benchmarks/scores.py --threads 1", tables, notes, {"cases": data})


def _case(
    subject: Subject, options: tuple[Option, ...], compare: bool
) -> tuple[list[list[object]], dict[str, Any]]:
    network, data, quantizer = subject.network, subject.calibration, Quantizer()

    def forward() -> None:
        with torch.inference_mode():
            for part in batches(len(data.inputs)):
                network.run(data.inputs[part])

    def quantize() -> None:
        for layer in network.layers:
            perturbations(network, layer, options, quantizer)

    forward()
    score_fisher(network, data, options, quantizer, FisherSettings())
    forwards = [_seconds(forward)[0] for _ in range(REPEATS)]
    quantizing = min(_seconds(quantize)[0] for _ in range(REPEATS))
    found = {}
    for name, settings in SETTINGS if compare else SETTINGS[:1]:
        if settings.labels is Labels.ALL and subject.name != RESNET:
            continue
        runs = [
            _seconds(lambda chosen=settings: score_fisher(network, data, options, quantizer, chosen))
            for _ in range(REPEATS if settings.labels is Labels.PROJECTED else 1)
        ]
        found[name] = min(run[0] for run in runs), runs[-1][1]
        forwards.append(_seconds(forward)[0])
    exact_seconds, exact = _seconds(lambda: score_exact(network, data, options, quantizer))
    forwards.append(_seconds(forward)[0])
    plain = sorted(forwards)[len(forwards) // 2]
    rows: list[list[object]] = []
    for name, (seconds, scores) in found.items():
        usable = exact.loss > 0
        fisher_loss, exact_loss = scores.layer_loss()[usable], exact.loss[usable]
        ratio = float((fisher_loss / exact_loss).log().mean().exp())
        rank = float(spearmanr(fisher_loss, exact_loss).statistic)
        without = (seconds - quantizing) / plain
        rows.append([name, round(rank, 4), ratio, seconds, seconds / plain, without, exact_seconds / seconds])
    rows.append(
        ["exact", 1.0, 1.0, exact_seconds, exact_seconds / plain, (exact_seconds - quantizing) / plain, 1.0]
    )
    rows.append(["quantizing the options", None, None, quantizing, quantizing / plain, None, None])
    rows.append(["one forward pass", None, None, plain, 1.0, None, None])
    return rows, {"rows": rows, "forward_seconds": forwards}


def _seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


if __name__ == "__main__":
    main()
