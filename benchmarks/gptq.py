"""What GPTQ is worth on images it has not seen, and what its two safeguards contribute.

    python benchmarks/gptq.py
    python benchmarks/gptq.py vit_tiny_in1k

One option for all layers but the first and the last, which have 8 bits. *No float target*: every layer aims
at its float weight's output on the inputs of the quantized network, not at the float network's output.
*Positions alike*: tokens and pixels of outlying size count in full. Each network is measured on its own and
kept.
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
from methods import uniform_plan
from networks import MOBILENET, NETWORKS, RESNET, VIT, load_subject
from report import RESULTS, Table, write_report

from apportion.network import float_logits
from apportion.reconstruct import Gptq, Method, Nearest, measure_finalized

BITS = (2, 3, 4)
SAMPLES = {RESNET: 512, MOBILENET: 128, VIT: 128}
KEPT = RESULTS / "gptq.json"
ROWS: dict[str, tuple[Method, Callable[[], AbstractContextManager[Any]]]] = {
    "nearest": (Nearest(), nullcontext),
    "GPTQ": (Gptq(), nullcontext),
    "GPTQ, no float target": (Gptq(float_target=False), nullcontext),
    "GPTQ, positions alike": (Gptq(), lambda: patch("apportion.reconstruct.gram.MOST_ENERGY", math.inf)),
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
    for bits in BITS:
        plan = uniform_plan(network, f"w{bits}")
        for row, (method, setting) in ROWS.items():
            with setting():
                finalized = method.finalize(network, plan, data)
            quality = measure_finalized(network, finalized, subject.held_out, reference)
            rows[row][str(bits)] = {
                "kl": quality.loss,
                "accuracy": quality.accuracy,
                "calibration_kl": measure_finalized(network, finalized, data).loss,
            }
            print(name, bits, row, rows[row][str(bits)], flush=True)
    return {"samples": len(data.inputs), "held_out": subject.held_out.name, "rows": rows}


def _kept() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(KEPT.read_text())["data"]["networks"] if KEPT.exists() else {}
    return found


def _write(found: dict[str, Any]) -> None:
    tables = []
    for name in (name for name in NETWORKS if name in found):
        case = found[name]
        lines = [
            [
                row,
                *(cell[str(bits)]["kl"] for bits in BITS),
                *(round(100 * cell[str(bits)]["accuracy"], 2) for bits in BITS),
                *(cell[str(bits)]["calibration_kl"] for bits in BITS),
            ]
            for row, cell in case["rows"].items()
        ]
        header = ["weights by"]
        header += [f"{what} w{bits}" for what in ("KL,", "top-1,", "KL seen,") for bits in BITS]
        title = f"{name}, {case['samples']} calibration images, judged on {case['held_out']}"
        tables.append(Table(title, header, lines))
    notes = [
        "First and last layer of 8 bits, one option for all others. KL to the float network on images that "
        "GPTQ has not seen; *KL seen* is that on its own. *No float target*: layers aim at what their float "
        "weights give on the quantized network's inputs; else at the float network's output, as far as one "
        "half of the images confirms what is fitted to the other half. *Positions alike*: tokens and pixels "
        "of outlying size count in full, not as three that are above nine in ten.",
    ]
    write_report(
        "gptq", "GPTQ and its safeguards", "python benchmarks/gptq.py", tables, notes, {"networks": found}
    )


if __name__ == "__main__":
    main()
