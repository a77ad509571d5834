"""What GPTQ is worth on images it has not seen, and what its refitted steps and its safeguards contribute.

    python benchmarks/gptq.py
    python benchmarks/gptq.py vit_tiny_in1k

One option for all layers but the first and the last, which have 8 bits. *Steps of nearest*: the steps stay
those that nearest rounding has. *No float target*:
every layer aims at its float weight's output on the inputs of the quantized network, not at the float
network's output. *Outlying positions in full*: tokens and pixels of outlying size are not levelled.
*Positions alike*: they are, but none is weighted by what it does to the network's output. *Damped alike*:
every Gram matrix is damped by 0.01 of the mean of its diagonal. Each network is measured on its own and kept.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from bench import uniform_plan
from networks import MOBILENET, NETWORKS, RESNET, VIT, load_subject
from report import RESULTS, Table, write_report

from apportion.network import float_logits
from apportion.reconstruct import Gptq, Method, Nearest, measure_finalized

OPTIONS = ("w2", "w3", "w4")
SAMPLES = {RESNET: 512, MOBILENET: 128, VIT: 128}
KEPT = RESULTS / "gptq.json"
OUTLYING = "apportion.reconstruct.levels.MOST_ENERGY"
ROWS: dict[str, tuple[Method, Callable[[], AbstractContextManager[Any]]]] = {
    "nearest": (Nearest(), nullcontext),
    "GPTQ": (Gptq(), nullcontext),
    "GPTQ, steps of nearest": (Gptq(refits=0), nullcontext),
    "GPTQ, no float target": (Gptq(float_target=False), nullcontext),
    "GPTQ, outlying positions in full": (Gptq(), lambda: patch(OUTLYING, math.inf)),
    "GPTQ, positions alike": (Gptq(weighted=False), nullcontext),
    "GPTQ, damped alike": (Gptq(), lambda: patch("apportion.reconstruct.damping.MOST", 0.0)),
}


def main() -> None:
    """Measure the networks named and write results/gptq.{json,md}."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(NETWORKS))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.networks or NETWORKS:
        found = _kept()
        found[name] = measure(name)
        _write(found)


def measure(name: str) -> dict[str, Any]:
    """Loss of every row at every width, on the images of calibration and on others."""
    subject = load_subject(name, SAMPLES[name])
    network, data = subject.network, subject.calibration
    reference = float_logits(network, subject.held_out)
    rows: dict[str, dict[str, Any]] = {row: {} for row in ROWS}
    for option in OPTIONS:
        plan = uniform_plan(network, option)
        for row, (method, setting) in ROWS.items():
            with setting():
                finalized = method.finalize(network, plan, data)
            quality = measure_finalized(network, finalized, subject.held_out, reference)
            rows[row][option] = {
                "kl": quality.loss,
                "accuracy": quality.accuracy,
                "calibration_kl": measure_finalized(network, finalized, data).loss,
            }
            print(name, option, row, rows[row][option], flush=True)
    return {"samples": len(data.inputs), "held_out": subject.held_out.name, "rows": rows}


def _lines(case: dict[str, Any], key: str, scale: float = 1.0) -> list[list[Any]]:
    return [[row, *(scale * cells[option][key] for option in OPTIONS)] for row, cells in case["rows"].items()]


def _kept() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(KEPT.read_text())["data"]["networks"] if KEPT.exists() else {}
    rows = {row: set(OPTIONS) for row in ROWS}
    return {
        name: case
        for name, case in found.items()
        if {row: set(cells) for row, cells in case["rows"].items()} == rows
    }


def _write(found: dict[str, Any]) -> None:
    tables = []
    for name in (name for name in NETWORKS if name in found):
        case = found[name]
        title = f"{name}, {case['samples']} calibration images, judged on {case['held_out']}"
        tables += [
            Table(f"KL, {title}", ["weights by", *OPTIONS], _lines(case, "kl")),
            Table(
                f"KL on the calibration images, {name}",
                ["weights by", *OPTIONS],
                _lines(case, "calibration_kl"),
            ),
            Table(f"Top-1 in percent, {name}", ["weights by", *OPTIONS], _lines(case, "accuracy", 100)),
        ]
    notes = [
        "First and last layer of 8 bits. KL to the float network on images that GPTQ has not seen. *Steps "
        "of nearest*: the steps stay those of nearest rounding; else every channel's are refitted to its "
        "codes by a factor, four times, and rounded at again. *No float target*: layers aim at what their "
        "float weights give on the quantized network's inputs; else at the float network's output, as far "
        "as one half of the images confirms what is fitted to the other half. *Outlying positions in full*:"
        " tokens and pixels of outlying size count in full, not as three that are above nine in ten. "
        "*Positions alike*: none counts by what an error there does to the network's output. *Damped "
        "alike*: every Gram matrix is damped by 0.01 of the mean of its diagonal; else by that times the "
        "power of ten at which GPTQ of one half of the images is expected to leave the least error on the "
        "other.",
    ]
    write_report(
        "gptq", "GPTQ and its safeguards", "python benchmarks/gptq.py", tables, notes, {"networks": found}
    )


if __name__ == "__main__":
    main()
