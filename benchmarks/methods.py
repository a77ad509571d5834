"""Held-out quality of the same plans' weights under every method of reconstruction, and what each costs.

    python benchmarks/methods.py cifar10_resnet20

Uniform plans with the first and last layer at 8 bits, and plans solved from Fisher scores per layer and per
channel. Methods see calibration images only; the weights are then measured on other images. Outcomes of
several runs are merged: a run of some methods or plans leaves the others' as they are.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Mapping
from typing import Any, Self

import psutil
import torch
from networks import MOBILENET, NETWORKS, RESNET, VIT, Subject, load_subject
from report import RESULTS, Table, write_report

from apportion.allocator import Complexity, LayerPlan, Plan, assignment_digest
from apportion.network import Data, Network, float_logits
from apportion.quantizer import Quantizer, parse_option, parse_options, stored_bits
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
from apportion.sensitivity import Objective, measure_profile, solve_plan

UNIFORM = ("w2", "w3", "w4", "w2x2", "w4x2")
SOLVED = {
    "3b per layer": ("3b", "layer"),
    "3.5b per layer": ("3.5b", "layer"),
    "3b per channel": ("3b", "channel"),
    "3.5b per channel": ("3.5b", "channel"),
    "4b per channel": ("4b", "channel"),
}
PLANS = (*UNIFORM, *SOLVED)
ENDS = "w8"
SAMPLES = {RESNET: 1024, MOBILENET: 256, VIT: 128}
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
    "BRECQ from GPTQ, last point alone": LearnedRounding(all_points=False),
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
    """Measure the networks, methods and plans named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=[RESNET])
    parser.add_argument("--plans", nargs="+", default=list(PLANS), choices=PLANS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.networks) - set(NETWORKS)):
        parser.error(f"{unknown[0]} is not one of {', '.join(NETWORKS)}")
    torch.set_num_threads(arguments.threads)
    for name in arguments.networks:
        measure(name, arguments.plans, arguments.methods)


def measure(name: str, plans: list[str], methods: list[str]) -> None:
    """Write results/methods_<name>.{json,md}."""
    subject = load_subject(name, SAMPLES.get(name, 256))
    labels = subject.held_out.labels
    assert labels is not None
    judge = Data(subject.held_out.inputs[:JUDGED_ON], labels[:JUDGED_ON], subject.held_out.name)
    reference = float_logits(subject.network, judge)
    cells = _known(name)
    scores = measure_profile(subject.network, subject.calibration, parse_options("w2..8"))
    for option in plans:
        if option in SOLVED:
            plan = solve_plan(*scores, *SOLVED[option], objective=Objective.ADDITIVE)
        else:
            plan = uniform_plan(subject.network, option)
        for method in methods:
            wall, processor = time.perf_counter(), time.process_time()
            with PeakMemory() as peak:
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
                "peak_mib": peak.mib,
            }
            print(name, option, method, cells[method][option], flush=True)
            _write(subject, len(judge.inputs), cells)


class PeakMemory:
    """The most memory of this process while a block runs, above what it had before, in MiB."""

    def __enter__(self) -> Self:
        self._process = psutil.Process()
        self._before = self._most = self._process.memory_info().rss
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._watcher.join()

    @property
    def mib(self) -> float:
        return (self._most - self._before) / 2**20

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self._most = max(self._most, self._process.memory_info().rss)


def uniform_plan(network: Network, option: str, ends: str = ENDS) -> Plan:
    """One option for all layers but the first and the last, which have 8 bits or what is said."""
    names = list(layer_shapes(network))
    return plan_by_hand(network, {name: ends if name in (names[0], names[-1]) else option for name in names})


def plan_by_hand(network: Network, chosen: Mapping[str, str]) -> Plan:
    """A plan per layer from the option of every layer by name."""
    shapes, layers = layer_shapes(network), []
    for layer in network.layers:
        text = chosen[layer.name]
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
        options=tuple(dict.fromkeys(chosen.values())),
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
    plans = [plan for plan in PLANS if plan in bits]

    def table(title: str, key: str, scale: float = 1.0) -> Table:
        rows: list[list[Any]] = [
            [method, *(_shown(cells[method].get(option), key, scale) for option in plans)]
            for method in METHODS
            if method in cells
        ]
        return Table(title, ["method", *plans], rows)

    notes = [
        f"{subject.name}: {subject.calibration.name} for calibration, judged on the first {judged_on} of "
        f"{subject.held_out.name}. Float top-1 {100 * some['float_accuracy']:.2f}%. Columns named by an "
        "option: that option for all layers but the first and the last, which have w8; the others are plans "
        "solved from Fisher scores of options w2 to w8. Average stored bits, steps included: "
        + ", ".join(f"{option} {bits[option]:.2f}" for option in plans)
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
            table("Peak memory above what was there before, MiB", "peak_mib"),
        ],
        notes,
        {"cells": cells},
    )


def _shown(cell: dict[str, float] | None, key: str, scale: float) -> float | None:
    return scale * cell[key] if cell is not None and key in cell else None


if __name__ == "__main__":
    main()
