"""Allocation for reconstruction: uniform, per layer and per channel plans of one stored size, after BRECQ.

    python benchmarks/allocated.py cifar10_resnet20
    python benchmarks/allocated.py mobilenetv1_075_in1k --iterations 500 --batch 8

Plans are solved from scores of weights rounded to nearest and of those that GPTQ makes of every option, and
all of them are reconstructed and judged on images that neither scores nor reconstruction have seen. Rows are
kept one by one: a run that is cut goes on, and rows that are there are not measured again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from bench import DEVICES, ENDS, OPTIONS, SAMPLES, Bench, device_name, uniform_plan
from kept import KeptRows, Row
from networks import NETWORKS, RESNET, load_subject
from report import Table, write_report

from apportion.allocator import Plan, average_budget
from apportion.network import Network
from apportion.quantizer import Option, parse_option, parse_options, stored_bits
from apportion.reconstruct import (
    Gptq,
    LearnedRounding,
    Learning,
    Nearest,
)
from apportion.sensitivity import Objective, solve_plan

BITS = ("2", "2.25", "2.5", "3", "3.5")
ENDS_ALLOWANCE = 0.05
UNIFORM = "uniform"
SOLVED: dict[str, tuple[str, Objective, bool]] = {
    "per layer, nearest scores": ("layer", Objective.ADDITIVE, False),
    "per layer, scores after GPTQ": ("layer", Objective.ADDITIVE, True),
    "per channel, nearest scores": ("channel", Objective.ADDITIVE, False),
    "per channel, scores after GPTQ": ("channel", Objective.ADDITIVE, True),
    "per channel, nearest scores, joint": ("channel", Objective.JOINT, False),
}
ROWS = (UNIFORM, *SOLVED)
TARGETS = {"2.25": 0.085, "2.5": 0.05}


def main() -> None:
    """Measure one network's rows at the average bits named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument(
        "--bits",
        nargs="+",
        default=list(BITS),
        help="average bits of the codes alone; with a b, such as 2.5b, of all that is stored",
    )
    parser.add_argument("--iterations", type=int, default=Learning().iterations)
    parser.add_argument("--batch", type=int, default=Learning().batch, help="images per iteration")
    parser.add_argument("--samples", type=int, help="calibration images")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=DEVICES)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    samples = arguments.samples or SAMPLES[arguments.network]
    learning = Learning(iterations=arguments.iterations, batch=arguments.batch)
    measure(arguments.network, arguments.bits, arguments.rows, samples, learning, arguments.device)


def measure(
    name: str, bits: list[str], rows: list[str], samples: int, learning: Learning, device: str
) -> None:
    """Write results/allocated_<name>.{json,md}, or allocated_<name>_cuda, again after every row."""
    bench = Bench(load_subject(name, samples, device))
    settings = {
        "samples": samples,
        "iterations": learning.iterations,
        "batch": learning.batch,
        "options": OPTIONS,
        "device": device_name(device),
    }
    kept = KeptRows(
        page_of(name, device), settings, lambda found: write(bench, samples, learning, device, found)
    )
    for column in bits:
        for row in rows:
            key = f"{column}: {row}"
            if key in kept.rows:
                continue
            plan = plan_of(bench, column, row)
            # Rows of one budget may come to the same plan, which needs no second measurement.
            same = (found for found in kept.rows.values() if found["assignment"] == plan.assignment)
            kept.add(key, next(same, None) or measured(bench, plan, learning))


def page_of(name: str, device: str) -> str:
    """What rows of a device are kept under."""
    return f"allocated_{name}" if device == "cpu" else f"allocated_{name}_{device}"


def plan_of(bench: Bench, column: str, row: str) -> Plan:
    """The plan of a row within the size of its column."""
    budget = budget_bits(bench.network, column)
    if row == UNIFORM:
        return largest_uniform(bench.network, budget)
    unit, objective, after_gptq = SOLVED[row]
    scores = bench.gptq_scores if after_gptq else bench.nearest_scores
    return solve_plan(*scores, average_budget(budget, scores[0].weight_count), unit, objective=objective)


def budget_bits(network: Network, column: str) -> int:
    """Stored bits of all layers in a column, see the note on the page."""
    layers = network.layers
    count = sum(layer.channels * layer.fan_in for layer in layers)
    if column.endswith("b"):
        return int(float(column[:-1]) * count)
    bits = float(column)
    steps = sum(step_bits(layer.channels, layer.fan_in) for layer in layers)
    size = int(bits * count) + steps
    if bits.is_integer():
        with_ends = _weight_bits(uniform_plan(network, f"w{int(bits)}"))
        if with_ends - size <= ENDS_ALLOWANCE * count:
            return with_ends
    return size


def largest_uniform(network: Network, budget: int) -> Plan:
    """The largest uniform plan within the budget; first and last layer have 8 bits where that fits."""
    options = [str(option) for option in parse_options(OPTIONS)]
    plans = [uniform_plan(network, option, ends) for option in options for ends in (ENDS, option)]
    return max((plan for plan in plans if _weight_bits(plan) <= budget), key=_weight_bits)


def measured(bench: Bench, plan: Plan, learning: Learning) -> Row:
    """What a plan is worth after rounding to nearest, GPTQ and BRECQ, and what BRECQ took."""
    network, data = bench.network, bench.subject.calibration
    row: Row = {
        "assignment": plan.assignment,
        "stored_bits": plan.complexity.average_bits,
        "code_bits": code_bits(plan),
        "predicted_loss": plan.predicted_loss,
        "nearest_kl": bench.quality(Nearest().finalize(network, plan, data))["kl"],
        "gptq_kl": bench.quality(Gptq().finalize(network, plan, data))["kl"],
    }
    began = time.process_time()
    finalized = LearnedRounding(learning=learning).finalize(network, plan, data)
    row["processor_seconds"] = time.process_time() - began
    return row | bench.quality(finalized)


def step_bits(channels: int, fan_in: int) -> int:
    """Bits of a layer's steps, one for each channel."""
    return stored_bits([Option(2)] * channels, fan_in, 1) - 2 * channels * fan_in


def code_bits(plan: Plan) -> float:
    """Average bits of the codes alone, without steps and without which channel has which option."""
    total = 0
    for layer in plan.layers:
        options, cut = [parse_option(text) for text in layer.strip_options()], layer.layer_cut()
        per_strip = cut.rows_per_strip * cut.row_weights
        total += sum(option.bits * option.points for option in options) * per_strip
    return total / plan.complexity.weight_count


def _weight_bits(plan: Plan) -> int:
    return sum(layer.size_bits for layer in plan.layers)


def write(bench: Bench, samples: int, learning: Learning, device: str, rows: dict[str, Row]) -> None:
    """Write the page of all rows that were measured."""
    name = bench.subject.name
    columns = sorted({key.split(": ")[0] for key in rows}, key=lambda text: (text.endswith("b"), text))
    some = next(iter(rows.values()))

    def table(title: str, cell: Callable[[Row], object]) -> Table:
        lines = [
            [row, *(cell(rows[f"{c}: {row}"]) if f"{c}: {row}" in rows else None for c in columns)]
            for row in ROWS
        ]
        return Table(title, ["plan", *columns], [line for line in lines if any(line[1:])])

    best = []
    for column in columns:
        found = {row: rows[f"{column}: {row}"] for row in ROWS if f"{column}: {row}" in rows}
        least = min(found, key=lambda row: found[row]["kl"])
        asked = f" (asked for: {TARGETS[column]})" if column in TARGETS and name == RESNET else ""
        best.append(
            f"{column}: {least}, KL {found[least]['kl']:.4f}{asked}, top-1 drop in points "
            f"{_drop(found[least])}"
        )
    notes = [
        f"{name}: {samples} training images for scores and reconstruction, {learning.iterations:,} "
        f"iterations of {learning.batch} of them per block; judged on the first {len(bench.judge.inputs)} of "
        f"{bench.subject.held_out.name}, float top-1 {100 * some['float_accuracy']:.2f}%. Options {OPTIONS} "
        f"with a step per channel. Measured on: {device_name(device)}.",
        "All plans of a column have at most the same stored size. A column is named by the bits of the codes "
        "alone, as published tables count them; its size is those and the 16-bit steps, and at whole numbers "
        "that of the uniform plan with 8 bits in the first and the last layer, where that takes at most "
        f"{ENDS_ALLOWANCE} bits per weight more. Plans per channel pay within it for saying which channel "
        "has which option, and so have fewer bits of codes. In columns with a b, such as 2.5b, that number "
        "is all that is stored. Where no uniform plan has the size, the largest that fits stands for it.",
        "Best after BRECQ at " + "; ".join(best) + ".",
    ]
    write_report(
        page_of(name, device),
        f"Allocation for reconstruction: {name}",
        f"python benchmarks/allocated.py {name} --iterations {learning.iterations} --batch {learning.batch} "
        f"--samples {samples} --device {device}",
        [
            table("KL to the float network on held-out images, after BRECQ", lambda row: row["kl"]),
            table("Top-1 in percent, after BRECQ", lambda row: round(100 * row["accuracy"], 2)),
            table("Top-1 lost in points, with the paired 95% interval", _drop),
            table("KL after GPTQ", lambda row: row["gptq_kl"]),
            table("KL after rounding to nearest", lambda row: row["nearest_kl"]),
            table("Average bits of all that is stored", lambda row: row["stored_bits"]),
            table("Average bits of the codes alone", lambda row: row["code_bits"]),
            table("Processor seconds of BRECQ", lambda row: row["processor_seconds"]),
        ],
        notes,
        {"rows": rows},
    )


def _drop(row: Row) -> str:
    value, low, high = (100 * each for each in row["drop"])
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main()
