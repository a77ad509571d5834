"""Held-out quality of the same plans' weights under every method of reconstruction, and what each costs.

    python benchmarks/methods.py cifar10_resnet20
    python benchmarks/methods.py vit_tiny_in1k --iterations 100 --batch 8 --evaluations 60 --scored-on 64

Uniform plans with the first and last layer at 8 bits, and plans solved from scores after GPTQ per layer and
per channel. Methods see calibration images only; the weights are then measured on other images. Rows are
kept one by one: a run that is cut goes on, and one of other methods or plans adds to them.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import sys
import threading
import time
from dataclasses import replace
from typing import Any, Self

import psutil
import torch
from bench import DEVICES, OPTIONS, SAMPLES, Bench, device_name, uniform_plan
from kept import KeptRows, Row
from networks import NETWORKS, load_subject
from report import Table, write_report

from apportion.allocator import Plan
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
)
from apportion.sensitivity import Objective, solve_plan

UNIFORM = ("w2", "w3", "w4", "w2x2", "w4x2")
SOLVED = {
    "3b per layer": ("3b", "layer"),
    "3.5b per layer": ("3.5b", "layer"),
    "3b per channel": ("3b", "channel"),
    "3.5b per channel": ("3.5b", "channel"),
    "4b per channel": ("4b", "channel"),
}
PLANS = (*UNIFORM, *SOLVED)
MAIN = ("nearest", "LAPQ", "GPTQ", "AdaQuant", "AdaRound", "BRECQ")
"""What is measured where no methods are named; the others are variants of these."""


def methods_of(learning: Learning, search: Lapq) -> dict[str, Method]:
    """Every method and variant by the name of its row."""
    hard = replace(learning, soften=1.0)
    corrected = (("nearest", Nearest()), ("GPTQ", Gptq()))
    return {
        "nearest": Nearest(),
        "LAPQ": search,
        "GPTQ": Gptq(),
        "GPTQ, float inputs": Gptq(sequential=False),
        "GPTQ, no float target": Gptq(float_target=False),
        "AdaQuant": AdaQuant(),
        "AdaQuant from nearest": AdaQuant(start=None),
        "AdaQuant from nearest, parallel": AdaQuant(sequential=False, start=None),
        "AdaRound": LearnedRounding(Granularity.LAYER, learning=learning),
        "AdaRound from nearest": LearnedRounding(Granularity.LAYER, start=None, learning=hard),
        "BRECQ": LearnedRounding(learning=learning),
        "BRECQ from nearest": LearnedRounding(start=None, learning=hard),
        "BRECQ, Fisher weights": LearnedRounding(fisher=True, learning=learning),
        "BRECQ, half of the inputs float": LearnedRounding(learning=replace(learning, drop=0.5)),
        "BRECQ, last point alone": LearnedRounding(all_points=False, learning=learning),
        **{
            f"{name}, then {correction}": Corrected(method, (correction,))
            for name, method in corrected
            for correction in Correction
        },
    }


def main() -> None:
    """Measure the networks, methods and plans named on the command line."""
    known = methods_of(Learning(), Lapq())
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--plans", nargs="+", default=list(PLANS), choices=PLANS)
    parser.add_argument("--methods", nargs="+", default=list(MAIN), choices=list(known))
    parser.add_argument("--samples", type=int, help="calibration images")
    parser.add_argument("--iterations", type=int, default=Learning().iterations, help="of learned rounding")
    parser.add_argument("--batch", type=int, default=Learning().batch, help="images per iteration")
    parser.add_argument("--evaluations", type=int, default=Lapq().evaluations, help="of the loss by LAPQ")
    parser.add_argument("--scored-on", type=int, default=Lapq().samples, help="images of LAPQ's loss")
    parser.add_argument("--device", default="cpu", choices=DEVICES)
    parser.add_argument("--beside", type=int, default=0, help="other such processes on its GPU, at most")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = {
        "samples": arguments.samples or SAMPLES[arguments.network],
        "iterations": arguments.iterations,
        "batch": arguments.batch,
        "evaluations": arguments.evaluations,
        "scored_on": arguments.scored_on,
        "options": OPTIONS,
        "device": device_name(arguments.device),
    }
    measure(
        arguments.network, arguments.plans, arguments.methods, settings, arguments.device, arguments.beside
    )


def measure(
    name: str, plans: list[str], methods: list[str], settings: dict[str, Any], device: str, beside: int
) -> None:
    """Write results/methods_<name>.{json,md}, or methods_<name>_cuda, again after every row."""
    bench = Bench(load_subject(name, settings["samples"], device))
    learning = Learning(iterations=settings["iterations"], batch=settings["batch"])
    known = methods_of(learning, Lapq(evaluations=settings["evaluations"], samples=settings["scored_on"]))
    page = f"methods_{name}" if device == "cpu" else f"methods_{name}_{device}"
    kept = KeptRows(page, settings, lambda rows: write(page, bench, settings, device, list(known), rows))
    for option in plans:
        missing = [method for method in methods if f"{option}: {method}" not in kept.rows]
        plan = plan_of(bench, option) if missing else None
        for method in missing:
            assert plan is not None
            kept.add(f"{option}: {method}", {**row_of(bench, known[method], plan), "beside": beside})


def plan_of(bench: Bench, option: str) -> Plan:
    """The plan of a column."""
    if option not in SOLVED:
        return uniform_plan(bench.network, option)
    budget, unit = SOLVED[option]
    return solve_plan(*bench.gptq_scores, budget, unit, objective=Objective.ADDITIVE)


def row_of(bench: Bench, method: Method, plan: Plan) -> Row:
    """Quality of a plan's weights by a method, and what they took."""
    wall, processor = time.perf_counter(), time.process_time()
    with PeakMemory(bench.network.device) as peak:
        finalized = method.finalize(bench.network, plan, bench.subject.calibration)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    return {
        **bench.quality(finalized),
        "average_bits": plan.complexity.average_bits,
        "seconds": wall,
        "processor_seconds": processor,
        "peak_mib": peak.mib,
    }


class PeakMemory:
    """The most memory of this process while a block runs, above what it had before, in MiB.

    On a GPU, that of its tensors there.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __enter__(self) -> Self:
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
            return self
        if sys.platform == "linux":
            # Else what was freed before stays with the process, and is used again without being seen.
            ctypes.CDLL(None).malloc_trim(0)
        self._process = psutil.Process()
        self._before = self._most = self._process.memory_info().rss
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._device.type == "cuda":
            self._most = torch.cuda.max_memory_allocated(self._device)
            return
        self._done.set()
        self._watcher.join()

    @property
    def mib(self) -> float:
        return (self._most - self._before) / 2**20

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self._most = max(self._most, self._process.memory_info().rss)


def write(
    page: str, bench: Bench, settings: dict[str, Any], device: str, methods: list[str], rows: dict[str, Row]
) -> None:
    """Write the page of all rows that were measured."""
    name, some = bench.subject.name, next(iter(rows.values()))
    beside = max(row["beside"] for row in rows.values())
    shared = (
        f" Up to {beside + 1} such processes shared the GPU and slowed each other down." if beside else ""
    )
    bits = {key.split(": ")[0]: row["average_bits"] for key, row in rows.items()}
    plans = [plan for plan in PLANS if plan in bits]
    measured = [method for method in methods if any(f"{plan}: {method}" in rows for plan in plans)]

    def table(title: str, key: str, scale: float = 1.0) -> Table:
        found = [[rows.get(f"{plan}: {method}") for plan in plans] for method in measured]
        lines = [
            [method, *(scale * cell[key] if cell else None for cell in cells)]
            for method, cells in zip(measured, found, strict=True)
        ]
        return Table(title, ["method", *plans], lines)

    notes = [
        f"{name}: {bench.subject.calibration.name} for scores and reconstruction, judged on the first "
        f"{len(bench.judge.inputs)} of {bench.subject.held_out.name}. Float top-1 "
        f"{100 * some['float_accuracy']:.2f}%. Columns named by an option: that option for all layers but "
        "the first and the last, which have w8; the others are plans solved from scores after GPTQ of "
        f"options {settings['options']}. Average stored bits, steps included: "
        + ", ".join(f"{option} {bits[option]:.2f}" for option in plans)
        + ". One step per channel, by squared error for nearest rounding; all other methods and batch-norm "
        "re-estimation find their own.",
        f"Learned rounding (AdaRound, BRECQ): {settings['iterations']:,} iterations of {settings['batch']} "
        f"images per unit. LAPQ: {settings['evaluations']} evaluations of the loss on at most "
        f"{settings['scored_on']} images for Powell's method. AdaQuant, AdaRound and BRECQ start from GPTQ "
        f"unless it says otherwise. Measured on: {settings['device']}. Processor seconds are those of all "
        f"cores together; wall seconds depend on what else the machine did.{shared}",
    ]
    write_report(
        page,
        f"Methods of reconstruction: {name}",
        f"python benchmarks/methods.py {name} --samples {settings['samples']} --iterations "
        f"{settings['iterations']} --batch {settings['batch']} --evaluations {settings['evaluations']} "
        f"--scored-on {settings['scored_on']} --device {device}",
        [
            table("KL to the float network on held-out images", "kl"),
            table("Top-1 in percent", "accuracy", 100.0),
            table("Processor seconds", "processor_seconds"),
            table("Wall seconds", "seconds"),
            table("Peak memory above what was there before, MiB", "peak_mib"),
        ],
        notes,
        {"rows": rows},
    )


if __name__ == "__main__":
    main()
