"""Held-out quality of one plan's weights under every method of reconstruction, and what each costs.

    python benchmarks/methods.py cifar10_resnet20

Uniform plans, first and last layer at 8 bits. Methods see calibration images only; the weights are then
measured on other images. Outcomes of several runs are merged: a run of some methods or options leaves the
others' as they are.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
from networks import NETWORKS, RESNET, VIT, Subject, load_subject
from report import RESULTS, Table, write_report

from apportion.allocator import Complexity, LayerPlan, Plan, assignment_digest
from apportion.network import Data, Network, float_logits
from apportion.quantizer import Quantizer, parse_option, stored_bits
from apportion.reconstruct import (
    AdaQuant,
    Corrected,
    Correction,
    Gptq,
    Granularity,
    Lapq,
    LearnedRounding,
    Learning,
    Method,
    Nearest,
    layer_shapes,
    measure_finalized,
)

OPTIONS = ("w2", "w3", "w4", "w2x2")
ENDS = "w8"
SAMPLES = {RESNET: 1024, VIT: 256}
JUDGED_ON = 1000
METHODS: dict[str, Method] = {
    "nearest": Nearest(),
    "GPTQ, float inputs": Gptq(sequential=False),
    "GPTQ, quantized inputs": Gptq(float_target=False),
    "GPTQ, quantized inputs and float targets": Gptq(),
    "AdaRound from nearest": LearnedRounding(Granularity.LAYER, start=None, learning=Learning(soften=1.0)),
    "AdaRound from GPTQ": LearnedRounding(Granularity.LAYER),
    "BRECQ from nearest": LearnedRounding(start=None, learning=Learning(soften=1.0)),
    "BRECQ from GPTQ": LearnedRounding(),
    "BRECQ from GPTQ, Fisher weights": LearnedRounding(fisher=True),
    "BRECQ from GPTQ, half of the inputs float": LearnedRounding(learning=Learning(drop=0.5)),
    "BRECQ from GPTQ, 300 iterations": LearnedRounding(learning=Learning(iterations=300)),
    "AdaQuant from nearest, parallel": AdaQuant(sequential=False, start=None),
    "AdaQuant from nearest, sequential": AdaQuant(start=None),
    "AdaQuant from GPTQ, sequential": AdaQuant(),
    "LAPQ": Lapq(),
    **{
        f"{name}, then {correction}": Corrected(method, (correction,))
        for name, method in (("nearest", Nearest()), ("GPTQ", Gptq()))
        for correction in Correction
    },
}

Cells = dict[str, dict[str, dict[str, float]]]


def main() -> None:
    """Measure the networks, methods and options named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=[RESNET])
    parser.add_argument("--options", nargs="+", default=list(OPTIONS), choices=OPTIONS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.networks) - set(NETWORKS)):
        parser.error(f"{unknown[0]} is not one of {', '.join(NETWORKS)}")
    torch.set_num_threads(arguments.threads)
    for name in arguments.networks:
        measure(name, arguments.options, arguments.methods)


def measure(name: str, options: list[str], methods: list[str]) -> None:
    """Write results/methods_<name>.{json,md}."""
    subject = load_subject(name, SAMPLES.get(name, 256))
    labels = subject.held_out.labels
    assert labels is not None
    judge = Data(subject.held_out.inputs[:JUDGED_ON], labels[:JUDGED_ON], subject.held_out.name)
    reference = float_logits(subject.network, judge)
    cells = _known(name)
    for option in options:
        plan = uniform_plan(subject.network, option)
        for method in methods:
            wall, processor = time.perf_counter(), time.process_time()
            finalized = METHODS[method].finalize(subject.network, plan, subject.calibration)
            wall, processor = time.perf_counter() - wall, time.process_time() - processor
            quality = measure_finalized(subject.network, finalized, judge, reference)
            cells.setdefault(method, {})[option] = {
                "kl": quality.loss,
                "standard_error": quality.standard_error,
                "accuracy": quality.accuracy or 0.0,
                "float_accuracy": quality.float_accuracy or 0.0,
                "average_bits": plan.complexity.average_bits,
                "seconds": wall,
                "processor_seconds": processor,
            }
            print(name, option, method, cells[method][option], flush=True)
            _write(subject, len(judge.inputs), cells)


def uniform_plan(network: Network, option: str) -> Plan:
    """One option for all layers but the first and the last, which have 8 bits."""
    shapes = layer_shapes(network)
    names = list(shapes)
    layers = []
    for layer in network.layers:
        text = ENDS if layer.name in (names[0], names[-1]) else option
        size_bits = stored_bits([parse_option(text)] * layer.channels, layer.fan_in, 2)
        layers.append(
            LayerPlan(
                name=layer.name,
                shape=shapes[layer.name],
                option=text,
                size_bits=size_bits,
                predicted_loss=0.0,
                mean_bits=size_bits / (layer.channels * layer.fan_in),
            )
        )
    weights = sum(layer.size_bits for layer in layers)
    count = sum(layer.channels * layer.fan_in for layer in network.layers)
    fixed_bits = network.float_bits - 32 * count
    return Plan(
        unit="layer",
        budgets=("100%",),
        complexity=Complexity(
            size_bits=weights + fixed_bits,
            average_bits=weights / count,
            fixed_bits=fixed_bits,
            float_bits=network.float_bits,
            weight_count=count,
        ),
        predicted_loss=0.0,
        profile="none: chosen by hand",
        options=(option, ENDS),
        quantizer=Quantizer().settings(),
        assignment=assignment_digest(layers),
        versions={},
        layers=tuple(layers),
    )


def _known(name: str) -> Cells:
    path = RESULTS / f"methods_{name}.json"
    if not path.exists():
        return {}
    cells: Cells = json.loads(path.read_text(encoding="utf-8"))["data"]["cells"]
    return {method: found for method, found in cells.items() if method in METHODS}


def _write(subject: Subject, judged_on: int, cells: Cells) -> None:
    some = next(iter(next(iter(cells.values())).values()))
    bits = {option: cell["average_bits"] for found in cells.values() for option, cell in found.items()}
    options = [option for option in OPTIONS if option in bits]

    def table(title: str, key: str, scale: float = 1.0) -> Table:
        rows: list[list[Any]] = [
            [method, *(_shown(cells[method].get(option), key, scale) for option in options)]
            for method in METHODS
            if method in cells
        ]
        return Table(title, ["method", *options], rows)

    notes = [
        f"{subject.name}: {subject.calibration.name} for calibration, judged on the first {judged_on} of "
        f"{subject.held_out.name}. Float top-1 {100 * some['float_accuracy']:.2f}%. First and last layer "
        "w8, all others the option of the column; average stored bits, steps included: "
        + ", ".join(f"{option} {bits[option]:.2f}" for option in options)
        + ". One step per channel by squared error, which only AdaQuant, LAPQ and batch-norm re-estimation "
        "change.",
        "Learned rounding by default: "
        f"{Learning().iterations:,} iterations of {Learning().batch} samples per unit. Processor seconds are "
        "those of all cores together; wall seconds depend on what else the machine did.",
    ]
    write_report(
        f"methods_{subject.name}",
        f"Methods of reconstruction: {subject.name}",
        f"python benchmarks/methods.py {subject.name}",
        [
            table("KL to the float network on held-out images", "kl"),
            table("Top-1 in percent", "accuracy", 100.0),
            table("Wall seconds", "seconds"),
            table("Processor seconds", "processor_seconds"),
        ],
        notes,
        {"cells": cells},
    )


def _shown(cell: dict[str, float] | None, key: str, scale: float) -> float | None:
    return None if cell is None else scale * cell[key]


if __name__ == "__main__":
    main()
