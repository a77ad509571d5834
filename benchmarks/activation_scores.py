"""Fisher scores of activation options against exact ones: agreement over all values and options.

    python benchmarks/activation_scores.py cifar10_resnet20
    python benchmarks/activation_scores.py vit_tiny_in1k babyllama105

Each network is measured on its own and kept in the page beside the others.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
from networks import LLAMA, RESNET, VIT, load_subject
from report import RESULTS, Table, write_report
from scipy.stats import spearmanr

from apportion.quantizer import parse_option_set
from apportion.sensitivity import (
    ActivationSettings,
    FisherSettings,
    score_activations_exact,
    score_values,
    site_options,
)

CASES = {
    RESNET: (256, "w8a2..8", False),
    VIT: (16, "w8a4,w8a6,w8a8", False),
    LLAMA: (16, "w8a4..8,w8a4..8d", False),
}
HEADER = [
    "network",
    "samples",
    "values x options",
    "rank correlation",
    "geometric-mean ratio",
    "seconds",
    "exact",
]


def main() -> None:
    """Measure the networks that are named and write results/activation_scores.{json,md}."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(CASES))
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    kept = RESULTS / "activation_scores.json"
    found: dict[str, Any] = json.loads(kept.read_text())["data"]["networks"] if kept.exists() else {}
    for name in given.networks or CASES:
        found[name] = _case(name)
        print(found[name], flush=True)
        _write(found)


def _write(found: dict[str, Any]) -> None:
    rows = [
        [name, case["samples"], f"{case['values']} x {case['options']}", case["rank"], case["ratio"],
         case["seconds"], case["exact_seconds"]]
        for name, case in found.items()
    ]  # fmt: skip
    notes = [
        "Rank correlation (Spearman) and geometric-mean ratio of Fisher to exact scores over all values and "
        "options whose exact loss is above 1e-7, below which single precision decides. A value is one tensor "
        "that layers read. Options: "
        + "; ".join(f"{name} {case['text']}" for name, case in found.items())
        + ". Seconds of both kinds of scores, on one thread of a busy machine; those of Fisher scores are of "
        "all ranges among which they choose. Values of which few numbers are most have exact scores in both: "
        + ", ".join(f"{case['massive']} in {name}" for name, case in found.items() if case.get("massive"))
        + ".",
    ]
    write_report(
        "activation_scores",
        "Scores of activations against exact ones",
        "python benchmarks/activation_scores.py",
        [Table("Agreement, and time", HEADER, rows)],
        notes,
        {"networks": found},
    )


def _case(name: str) -> dict[str, Any]:
    samples, text, attention = CASES[name]
    subject = load_subject(name, samples)
    network, data = subject.network, subject.calibration
    settings = ActivationSettings(parse_option_set(text).activations, attention=attention)
    tried = site_options(network, data, settings)
    began = time.perf_counter()
    sites, fisher = score_values(network, data, tried, "fisher", FisherSettings())
    middle = time.perf_counter()
    exact = score_activations_exact(network, data, sites)
    end = time.perf_counter()
    usable = exact.loss > 1e-7
    one, other = fisher.loss[usable], exact.loss[usable]
    return {
        "samples": samples,
        "text": text,
        "values": len(sites),
        "massive": sum(site.massive for site in sites),
        "options": len(settings.options),
        "compared": int(usable.sum()),
        "rank": round(float(spearmanr(one, other).statistic), 4),
        "ratio": float((one / other).log().mean().exp()),
        "seconds": middle - began,
        "exact_seconds": end - middle,
    }


if __name__ == "__main__":
    main()
