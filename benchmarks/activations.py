"""Weights and activations in low bits: one pair of options for all, against what is allocated at its cost.

    python benchmarks/activations.py cifar10_resnet20
    python benchmarks/activations.py cifar10_resnet20 --methods gptq lapq brecq --rows w4a4
    python benchmarks/activations.py mobilenetv1_075_in1k vit_tiny_in1k --rows w8a8 w4a8
    python benchmarks/activations.py vit_tiny_in1k --by-token

Every network, row and method is measured on its own and kept in the page beside the others; what is there is
not measured again unless its row has become another plan or its entry is taken out of the JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from networks import MOBILENET, NETWORKS, RESNET, VIT, Subject, load_subject
from report import RESULTS, Table, write_report

from apportion.allocator import Plan
from apportion.network import float_logits
from apportion.quantizer import Quantizer, parse_option_set
from apportion.reconstruct import GptqOptions, MethodName, measure_finalized, method_named
from apportion.sensitivity import (
    ActivationSettings,
    Objective,
    Profile,
    ProfileArrays,
    measure_profile,
    solve_plan,
    uniform_plans,
)

OPTIONS = "w2..8a2..8"
BY_TOKEN = f"{OPTIONS},{OPTIONS}d"
SAMPLES = {RESNET: 256, MOBILENET: 128, VIT: 64}
PAIRS = ("w4a4", "w4a8", "w6a6", "w8a8")
FRONTIER = ("w3a3", "w4a4", "w5a5", "w6a6", "w8a8")
AFTER_GPTQ = ", scores after GPTQ"
KEPT = RESULTS / "activations.json"


def main() -> None:
    """Measure what is named and write results/activations.{json,md}."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(NETWORKS))
    parser.add_argument("--methods", nargs="*", default=["nearest", "gptq"])
    parser.add_argument("--rows", nargs="*", default=[*PAIRS, "frontier"])
    parser.add_argument("--by-token", action="store_true", help="also ranges of every token's own")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    found: dict[str, Any] = json.loads(KEPT.read_text())["data"]["networks"] if KEPT.exists() else {}
    for name in given.networks or [RESNET]:
        subject = load_subject(name, SAMPLES[name])
        _measure(subject, [MethodName(method) for method in given.methods], given.rows, found, given.by_token)
    _write(found)


def _measure(
    subject: Subject, methods: list[MethodName], rows: list[str], found: dict[str, Any], by_token: bool
) -> None:
    network, data = subject.network, subject.calibration
    options = parse_option_set(BY_TOKEN if by_token else OPTIONS)
    name = f"{subject.name}, with ranges of every token's own" if by_token else subject.name
    activations = ActivationSettings(options.activations)
    scores = {"": measure_profile(network, data, options.weights, activations=activations)}
    profile = scores[""][0]
    if MethodName.GPTQ in methods:
        weights = GptqOptions(network, data, Quantizer(), unseen=True)
        scores[AFTER_GPTQ] = measure_profile(
            network, data, options.weights, activations=activations, after="gptq", weights=weights
        )
    case = found.setdefault(name, {"samples": len(data.inputs), "rows": {}})
    case["held_out"] = subject.held_out.name
    reference = float_logits(network, subject.held_out)
    print(name, "scored", profile.seconds, flush=True)
    measured: dict[str, dict[str, Any]] = {}
    for label, plan in _plans(scores, uniform_plans(profile), rows, "d" if by_token else ""):
        row = case["rows"].setdefault(label, {})
        figures = {
            "bits": plan.complexity.average_bits,
            "bops": _bops(profile, plan),
            "act_memory": plan.complexity.costs["act_memory"],
            "predicted": plan.predicted_loss,
        }
        if row and not all(math.isclose(row[key], value, rel_tol=1e-6) for key, value in figures.items()):
            row.clear()
        row |= figures
        # The same plan under other limits.
        row |= measured.get(plan.assignment, {})
        for method in methods:
            if method.value in row:
                continue
            began = time.perf_counter()
            finalized = method_named(method).finalize(network, plan, data)
            quality = measure_finalized(network, finalized, subject.held_out, reference)
            row[method.value] = {
                "loss": quality.loss,
                "standard_error": quality.standard_error,
                "accuracy": quality.accuracy,
                "seconds": round(time.perf_counter() - began, 1),
            }
            case["float_accuracy"] = quality.float_accuracy
            print(name, label, method.value, row[method.value], flush=True)
            _write(found)
        measured[plan.assignment] = {method.value: row[method.value] for method in methods}


def _plans(
    scores: dict[str, tuple[Profile, ProfileArrays | None]],
    uniform: dict[str, Plan],
    rows: list[str],
    ranges: str,
) -> Iterator[tuple[str, Plan]]:
    """What is compared, each with its name in the table."""
    profile = scores[""][0]
    for pair in (each + ranges for each in PAIRS if each in rows):
        same = uniform[pair]
        budgets = [f"{same.complexity.average_bits:.6f}b", f"bops={_bops(profile, same):.0f}"]
        yield f"{pair}: uniform", same
        for after, found in scores.items():
            for unit in ("layer", "channel"):
                plan = solve_plan(*found, budgets, unit, objective=Objective.ADDITIVE)
                yield f"{pair}: allocated per {unit}, as many bits and bops{after}", plan
    if "frontier" in rows:
        for pair in (each + ranges for each in FRONTIER):
            same = uniform[pair]
            yield f"{pair}: uniform", same
            for after, found in scores.items():
                plan = solve_plan(*found, [f"bops={_bops(profile, same):.0f}"], "layer")
                yield f"{pair}: allocated per layer, as many bops{after}", plan


def _bops(profile: Profile, plan: Plan) -> float:
    """Bit operations of a plan, whether a budget limits them or not."""
    if "bops" in plan.complexity.costs:
        return plan.complexity.costs["bops"]
    bits = {layer.name: int(str(layer.option)[1:]) for layer in plan.layers}
    return float(
        sum(
            macs * value.chosen.bits * bits[layer]
            for value in plan.activations
            for layer, macs in value.readers.items()
        )
    )


def _write(found: dict[str, Any]) -> None:
    tables = []
    for name, case in found.items():
        rows = []
        methods = [
            str(method) for method in MethodName if any(method.value in row for row in case["rows"].values())
        ]
        for label, row in case["rows"].items():
            cells: list[object] = [
                label,
                row["bits"],
                row["bops"] / 1e6,
                row["act_memory"] / 1024,
                row["predicted"],
            ]
            for method in methods:
                made = row.get(method)
                cells += [made and made["loss"], made and _percent(made["accuracy"])]
            rows.append(cells)
        header = ["plan", "stored bits per weight", "bops, M", "peak of values, KiB", "predicted loss"]
        for method in methods:
            header += [f"KL, {method}", f"accuracy, {method}"]
        title = (
            f"{name}, {case['samples']} calibration images, judged on {case['held_out']} "
            f"(float: {_percent(case.get('float_accuracy'))})"
        )
        tables.append(Table(title, header, rows))
    notes = [
        f"Options {OPTIONS}; every layer and every value takes part, the first and the last too. *Uniform* "
        "is one pair of options for all. *Allocated* chooses weights and activations together within the bit "
        "operations, and where it says so the stored bits, of the uniform plan above it. The peak of values "
        "counts one sample, with convolutions computed into the relu or addition that follows. KL is that of "
        "the float network's output to the quantized one's, in nats. Scores are of weights rounded to "
        "nearest, or where a row says so of what GPTQ makes of every option; `allocate --after auto` lets "
        "both and the uniform plan compete on calibration data. Ranges of every token's own (`a8d`) are for "
        "what linear layers alone read as it is; other values have one for the tensor.",
    ]
    write_report(
        "activations",
        "Weights and activations in low bits",
        f"python benchmarks/activations.py {' '.join(name for name in found if name in NETWORKS)}\n"
        f"    python benchmarks/activations.py {RESNET} --methods gptq lapq brecq --rows w4a4\n"
        f"    python benchmarks/activations.py {RESNET} --methods gptq brecq --rows w4a8 w6a6\n"
        f"    python benchmarks/activations.py {VIT} --by-token",
        tables,
        notes,
        {"networks": found},
    )


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.2f}%"


if __name__ == "__main__":
    main()
