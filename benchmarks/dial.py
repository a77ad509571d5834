"""The continuous dial at equal size: additive, joint and refined plans, per layer and per channel.

    python benchmarks/dial.py cifar10_resnet20
    python benchmarks/dial.py mobilenetv1_075_in1k
    python benchmarks/dial.py vit_tiny_in1k
    python benchmarks/dial.py mobilenetv1_075_in1k --gptq  # of the plans that were measured before

Each network is measured on its own and kept in results/dial_<network>.json; the page results/dial.md is made
of all that are there. Scores, shrinkage and moves see calibration images only; every plan is judged on other
images, rounded to nearest and by GPTQ. Refining starts from the best of the four other plans, by those
calibration images that decide about its moves.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from networks import MOBILENET, NETWORKS, RESNET, VIT, Subject, load_subject
from report import RESULTS, Table, write_report

from apportion.allocator import Plan
from apportion.network import float_logits
from apportion.quantizer import parse_options
from apportion.reconstruct import Gptq, finalize_nearest, measure_finalized
from apportion.sensitivity import (
    FisherSettings,
    Objective,
    Profile,
    ProfileArrays,
    measure_profile,
    pose_task,
    refine,
    solve_plan,
)

BUDGETS = ("2.5b", "3b", "3.5b", "4b", "5b", "6b")
LAYER, LAYER_JOINT, CHANNEL, CHANNEL_JOINT, REFINED = (
    "per layer, additive (the reference)",
    "per layer, joint",
    "per channel, additive",
    "per channel, joint",
    "per channel, refined",
)
METHODS = (LAYER, LAYER_JOINT, CHANNEL, CHANNEL_JOINT, REFINED)
SAMPLES = {RESNET: 1024, MOBILENET: 1000, VIT: 1000}
"""Images of the scores."""
REFINED_ON = {RESNET: 1024, MOBILENET: 512, VIT: 512}
"""Images of them that refining sees: moves come from one half, the other decides what is returned."""
GPTQ_ON = {RESNET: 1024, MOBILENET: 256, VIT: 256}
"""Images of them that GPTQ sees."""
EVALUATIONS = {RESNET: 20, MOBILENET: 30, VIT: 20}
LOW_END = ("2.5b", "3b", "3.5b")
"""Where scores mislead; at other budgets a third of the evaluations are made."""
TARGET = 0.55


def main() -> None:
    """Measure the networks named on the command line, then write the page of all that were measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--budgets", nargs="+", default=list(BUDGETS), choices=BUDGETS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--samples", type=int)
    parser.add_argument("--evaluations", type=int)
    parser.add_argument("--gptq", action="store_true", help="judge the plans of before after GPTQ")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.networks:
        if name != "page":
            samples = arguments.samples or SAMPLES[name]
            most = arguments.evaluations or EVALUATIONS[name]
            if arguments.gptq:
                measure_gptq(name, arguments.budgets, samples)
            else:
                measure(name, arguments.budgets, samples, most, arguments.threads)
    write_page()


def measure(name: str, budgets: list[str], samples: int, evaluations: int, threads: int) -> None:
    """Write results/dial_<name>.json, again after every budget; other budgets' cells stay."""
    subject = load_subject(name, samples)
    began = time.perf_counter()
    profile, arrays = _scored(subject)
    seconds = {"scores": round(time.perf_counter() - began, 1)}
    reference = float_logits(subject.network, subject.held_out)
    some = subject.calibration.part(slice(REFINED_ON[name]))
    path = RESULTS / f"dial_{name}.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    known = before["cells"] if before.get("calibration") == subject.calibration.name else {}
    cells: dict[str, dict[str, Any]] = {
        method: {b: cell for b, cell in known.get(method, {}).items() if b not in budgets}
        for method in METHODS
    }
    for budget in budgets:
        plans: dict[str, Plan] = {}
        for method in METHODS[:4]:
            began = time.perf_counter()
            plans[method] = _solved(profile, arrays, budget, method)
            cells[method][budget] = _judged(subject, reference, plans[method], began)
        began = time.perf_counter()
        task = pose_task(profile, arrays, budget, "channel")
        starts = [task.choice_within(plan) for plan in plans.values()]
        most = evaluations if budget in LOW_END else evaluations // 3
        refined = refine(subject.network, some, task, starts, most)
        cell = _judged(subject, reference, task.plan_of(refined.choice), began)
        cell["evaluations"], cell["accepted"] = len(refined.steps), sum(s.best for s in refined.steps)
        cell["calibration_loss"] = [refined.start_loss, refined.loss]
        cell["choice"] = "".join(map(str, refined.choice))
        cells[REFINED][budget] = cell
        print(name, budget, {method: cells[method][budget]["kl"] for method in METHODS}, flush=True)
        document = {
            "network": name,
            "calibration": subject.calibration.name,
            "refined_on": REFINED_ON[name],
            "held_out": subject.held_out.name,
            "threads": threads,
            "seconds": seconds,
            "cells": cells,
        }
        path.write_text(json.dumps(document, indent=1) + "\n")


def measure_gptq(name: str, budgets: list[str], samples: int) -> None:
    """Add to the cells of results/dial_<name>.json what their plans lose after GPTQ, budget by budget."""
    path = RESULTS / f"dial_{name}.json"
    document = json.loads(path.read_text())
    subject = load_subject(name, samples)
    profile, arrays = _scored(subject)
    reference = float_logits(subject.network, subject.held_out)
    some = subject.calibration.part(slice(GPTQ_ON[name]))
    document["gptq_on"] = GPTQ_ON[name]
    for budget in budgets:
        for method in METHODS:
            cell = document["cells"][method][budget]
            if method == REFINED:
                task = pose_task(profile, arrays, budget, "channel")
                plan = task.plan_of(np.array(list(map(int, cell["choice"])), np.intp))
            else:
                plan = _solved(profile, arrays, budget, method)
            if plan.assignment != cell["assignment"]:
                raise SystemExit(
                    f"{name} {budget} {method}: not the plan that was measured; measure it again"
                )
            finalized = Gptq().finalize(subject.network, plan, some)
            quality = measure_finalized(subject.network, finalized, subject.held_out, reference)
            cell["gptq_kl"], cell["gptq_accuracy"] = quality.loss, quality.accuracy
        print(
            name, budget, {each: document["cells"][each][budget]["gptq_kl"] for each in METHODS}, flush=True
        )
        path.write_text(json.dumps(document, indent=1) + "\n")


def _scored(subject: Subject) -> tuple[Profile, ProfileArrays | None]:
    settings = FisherSettings(factor_rows=512)
    return measure_profile(subject.network, subject.calibration, parse_options("w2..8"), settings=settings)


def _solved(profile: Profile, arrays: ProfileArrays | None, budget: str, method: str) -> Plan:
    objective = Objective.JOINT if "joint" in method else Objective.ADDITIVE
    unit = "layer" if "layer" in method else "channel"
    return solve_plan(profile, arrays, budget, unit, objective=objective)


def write_page() -> None:
    """Write results/dial.{json,md,png} from what was measured."""
    paths = (RESULTS / f"dial_{name}.json" for name in NETWORKS)
    measured = [json.loads(path.read_text()) for path in paths if path.exists()]
    # One that is still being measured has fewer budgets.
    found = [document for document in measured if set(document["cells"][REFINED]) == set(BUDGETS)]
    tables, logs, above = [], {method: [] for method in METHODS}, []
    for document in found:
        cells = document["cells"]
        rows = []
        for method in METHODS:
            shown = [cells[method][budget]["kl"] for budget in BUDGETS]
            logs[method].append(math.log(_ratio(cells, method, "kl")))
            rows.append([method, *shown, _ratio(cells, method, "kl")])
        above += [
            f"{document['network']} at {budget}"
            for budget in BUDGETS
            if cells[REFINED][budget]["kl"] >= cells[LAYER][budget]["kl"]
        ]
        accuracy = [
            [method, *(round(100 * cells[method][budget]["accuracy"], 2) for budget in BUDGETS)]
            for method in METHODS
        ]
        title = f"{document['network']}: {document['calibration']}, judged on {document['held_out']}"
        tables.append(Table(f"KL, {title}", ["average stored bits", *BUDGETS, "ratio to reference"], rows))
        tables.append(Table(f"Top-1 in percent, {title}", ["average stored bits", *BUDGETS], accuracy))
        if all("gptq_kl" in cell for found in cells.values() for cell in found.values()):
            rows = [
                [method, *(cells[method][b]["gptq_kl"] for b in BUDGETS), _ratio(cells, method, "gptq_kl")]
                for method in METHODS
            ]
            gptq_title = (
                f"KL of the same plans by GPTQ on {document['gptq_on']} images, {document['network']}"
            )
            header = ["average stored bits", *BUDGETS, "ratio to reference"]
            tables.append(Table(gptq_title, header, rows))
        account = [
            [
                budget,
                cells[REFINED][budget]["evaluations"],
                cells[REFINED][budget]["accepted"],
                *cells[REFINED][budget]["calibration_loss"],
                cells[REFINED][budget]["seconds"],
            ]
            for budget in BUDGETS
        ]
        header = ["budget", "moves measured", "bettered", "loss before", "loss after", "seconds"]
        tables.append(Table(f"Refining {document['network']}, on the images that decide", header, account))
    by_class = [
        f"{document['network']} at {budget}"
        for document in found
        for budget in BUDGETS
        if document["cells"][REFINED][budget].get("halves") == "by class"
    ]
    means = {method: math.exp(sum(values) / len(values)) for method, values in logs.items()}
    notes = [
        "Weights only, options w2 to w8 with one step per channel, overheads counted in the average bits; "
        "rounded to nearest, for which plans are scored and moved, but where a table says GPTQ. KL to the "
        "float network on held-out images. Geometric mean of the ratio to per-layer additive plans over all "
        f"budgets and networks: refined **{means[REFINED]:.3f}** (target {TARGET}), per channel joint "
        f"{means[CHANNEL_JOINT]:.3f}, per channel additive {means[CHANNEL]:.3f}, per layer joint "
        f"{means[LAYER_JOINT]:.3f}.",
        f"Refined is not below the reference at: {', '.join(above)}."
        if above
        else "Refined is below the reference at every budget on every network.",
        "Refined: by measured moves from the best of the other four plans, those per layer with some "
        "channels in fewer bits to make room for saying which channel has which option. It sees "
        + ", ".join(
            f"{document['refined_on']:,} of the images of {document['network']}" for document in found
        )
        + "; moves come from one half and are accepted on it, the other half decides which plan of the path "
        "is returned.",
        *(
            [f"Refined before samples were spread, with halves sorted by class: {', '.join(by_class)}."]
            if by_class
            else []
        ),
        "The seconds of refining are those of a machine that did other work beside it.",
    ]
    data = {"means": means, "networks": [document["network"] for document in found]}
    write_report(
        "dial", "The continuous dial at equal size", "python benchmarks/dial.py", tables, notes, data
    )
    _draw(found).savefig(RESULTS / "dial.png", dpi=120)


def _judged(subject: Subject, reference: torch.Tensor, plan: Plan, began: float) -> dict[str, Any]:
    seconds = time.perf_counter() - began
    finalized = finalize_nearest(subject.network, plan)
    quality = measure_finalized(subject.network, finalized, subject.held_out, reference)
    certificate = plan.certificate
    return {
        "assignment": plan.assignment,
        "kl": quality.loss,
        "standard_error": quality.standard_error,
        "accuracy": quality.accuracy,
        "average_bits": plan.complexity.average_bits,
        "predicted": plan.predicted_loss,
        "relative_gap": certificate.relative_gap if certificate else None,
        "seconds": round(seconds, 1),
    }


def _ratio(cells: dict[str, dict[str, Any]], method: str, key: str) -> float:
    """Geometric mean over the budgets of a method's KL over that of the reference."""
    logs = [math.log(cells[method][budget][key] / cells[LAYER][budget][key]) for budget in BUDGETS]
    return math.exp(sum(logs) / len(logs))


def _draw(found: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(4.6 * len(found), 4.4), layout="constrained")
    styles = list(zip(METHODS, ("#000000", "#999999", "#56B4E9", "#0072B2", "#D55E00"), "xsod^", strict=True))
    for index, document in enumerate(found):
        axes = figure.add_subplot(1, len(found), index + 1)
        for method, color, marker in styles:
            cells = document["cells"][method]
            points = [(cells[budget]["average_bits"], cells[budget]["kl"]) for budget in BUDGETS]
            axes.plot(*zip(*points, strict=True), color=color, marker=marker, label=method)
        axes.set_yscale("log")
        axes.set_xlabel("average stored bits per weight")
        axes.set_title(document["network"])
        axes.grid(alpha=0.3)
        if index == 0:
            axes.set_ylabel("KL to the float network, held-out images")
            axes.legend(frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    main()
