"""What sums of binary points are worth: against as many bits in one point, and among the options of a plan.

    python benchmarks/binary.py cifar10_resnet20 --methods nearest gptq brecq --solved
    python benchmarks/binary.py vit_tiny_in1k mobilenetv1_075_in1k

Every row is kept when it is measured, and what is there is not measured again.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import torch
from bench import ENDS, Bench, uniform_plan
from kept import KeptRows, Row
from networks import MOBILENET, NETWORKS, RESNET, VIT, load_subject
from report import Table, write_report

from apportion.allocator import Plan
from apportion.quantizer import Quantizer, parse_options
from apportion.reconstruct import GptqOptions, MethodName, method_named
from apportion.sensitivity import Objective, measure_profile, solve_plan

SAMPLES = {RESNET: 512, MOBILENET: 128, VIT: 128}
UNIFORM = ("w1", "w2", "w1x2", "w3", "w1x3", "w4", "w1x4")
SETS = ("w2..8", "w1x1..4,w2..8")
BUDGETS = ("2.25b", "2.5b", "3b", "3.5b")
COMMAND = """python benchmarks/binary.py cifar10_resnet20 --methods nearest gptq brecq --solved
    python benchmarks/binary.py vit_tiny_in1k mobilenetv1_075_in1k"""


def main() -> None:
    """Measure what is named and write results/binary.{json,md}."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(NETWORKS))
    parser.add_argument("--methods", nargs="*", default=["nearest", "gptq"])
    parser.add_argument(
        "--solved", action="store_true", help="plans per channel from both sets of options too"
    )
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    kept = KeptRows("binary", {"samples": SAMPLES, "ends": ENDS}, _write)
    for name in given.networks or [RESNET]:
        bench = Bench(load_subject(name, SAMPLES[name]))
        for option in UNIFORM:
            for method in given.methods:
                if f"{name}: {option}: {method}" not in kept.rows:
                    plan = uniform_plan(bench.network, option)
                    kept.add(f"{name}: {option}: {method}", _row(bench, plan, method))
        if given.solved:
            _solved(name, bench, kept)


def _solved(name: str, bench: Bench, kept: KeptRows) -> None:
    for options in SETS:
        names = {budget: f"{name}: {budget} per channel of {options}: gptq" for budget in BUDGETS}
        if all(row in kept.rows for row in names.values()):
            continue
        weights = GptqOptions(bench.network, bench.subject.calibration, Quantizer(), unseen=True)
        scores = measure_profile(
            bench.network, bench.subject.calibration, parse_options(options), after="gptq", weights=weights
        )
        for budget, row in names.items():
            plan = solve_plan(*scores, budget, "channel", objective=Objective.ADDITIVE)
            kept.add(row, _row(bench, plan, "gptq"))


def _row(bench: Bench, plan: Plan, method: str) -> Row:
    finalized = method_named(MethodName(method)).finalize(bench.network, plan, bench.subject.calibration)
    return {**bench.quality(finalized), "average_bits": plan.complexity.average_bits}


def _write(rows: Mapping[str, Row]) -> None:
    networks: dict[str, dict[str, dict[str, Row]]] = {}
    for key, row in rows.items():
        name, plan, method = key.split(": ")
        networks.setdefault(name, {}).setdefault(plan, {})[method] = row
    tables = []
    for name, plans in networks.items():
        methods = list(dict.fromkeys(method for found in plans.values() for method in found))
        header = ["weights", "stored bits per weight"]
        for method in methods:
            header += [f"KL, {method}", f"top-1, {method}"]
        lines = [_line(plan, found, methods) for plan, found in plans.items()]
        title = f"{name}, {SAMPLES[name]} calibration images"
        tables.append(Table(title, header, lines))
    write_report(
        "binary",
        "Sums of binary points",
        COMMAND,
        tables,
        [
            f"`w1x3` is the sum of three points of one bit, -1 or 1, each with a step of its own for every "
            f"channel. The first and the last layer have {ENDS} but in plans per channel, which are solved "
            "from scores after GPTQ. KL to the float network in nats, and top-1, on images that neither "
            "scores nor weights have seen. Stored bits count the steps. BRECQ with its default iterations."
        ],
        {"rows": dict(rows)},
    )


def _line(plan: str, found: Mapping[str, Row], methods: list[str]) -> list[Any]:
    line: list[Any] = [plan, next(iter(found.values()))["average_bits"]]
    for method in methods:
        row = found.get(method)
        line += [row["kl"], f"{100 * row['accuracy']:.2f}%"] if row else [None, None]
    return line


if __name__ == "__main__":
    main()
