"""The continuous dial at equal size: additive, joint and refined plans, per layer and per channel.

    python benchmarks/dial.py cifar10_resnet20
    python benchmarks/dial.py mobilenetv1_075_in1k
    python benchmarks/dial.py vit_tiny_in1k
    python benchmarks/dial.py mobilenetv1_075_in1k --gptq  # where GPTQ finalizes

Each network is measured on its own and kept in results/dial_<network>.json; the page results/dial.md is made
of all that are there. Scores, shrinkage and moves see calibration images only; every plan is judged on other
images. Refining starts from the best of the four other plans, by those calibration images that decide about
its moves. With --gptq plans are of scores after GPTQ, moves are measured of weights that GPTQ rounded, and
plans are judged after it, beside the reference of nearest scores.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from matplotlib.figure import Figure
from networks import MOBILENET, NETWORKS, RESNET, VIT, Subject, load_subject
from report import RESULTS, Table, write_report

from apportion.allocator import Plan
from apportion.network import float_logits
from apportion.quantizer import Quantizer, parse_options
from apportion.reconstruct import Finalized, Gptq, GptqOptions, finalize_nearest, measure_finalized
from apportion.sensitivity import (
    FisherSettings,
    Objective,
    OptionWeights,
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
AFTER_GPTQ = {method: f"{method.removesuffix(' (the reference)')}, scores after GPTQ" for method in METHODS}
BY_GPTQ = (LAYER, CHANNEL_JOINT, *AFTER_GPTQ.values())
"""What is judged after GPTQ."""
SAMPLES = {RESNET: 1024, MOBILENET: 1000, VIT: 1000}
"""Images of the scores."""
REFINED_ON = {RESNET: 1024, MOBILENET: 512, VIT: 512}
"""Images of them that refining sees: moves come from one half, the other decides what is returned."""
GPTQ_ON = {RESNET: 1024, MOBILENET: 128, VIT: 128}
"""Images of them that GPTQ sees."""
EVALUATIONS = {RESNET: 20, MOBILENET: 30, VIT: 20}
BY_GPTQ_EVALUATIONS = 12
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
    parser.add_argument("--gptq", action="store_true", help="score, move and judge after GPTQ")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.networks:
        if name != "page":
            samples = arguments.samples or SAMPLES[name]
            measure = measure_by_gptq if arguments.gptq else measure_nearest
            measure(name, arguments.budgets, samples, arguments.evaluations, arguments.threads)
    write_page()


def measure_nearest(name: str, budgets: list[str], samples: int, most: int | None, threads: int) -> None:
    """Write results/dial_<name>.json, again after every budget; other budgets' cells stay."""
    subject = load_subject(name, samples)
    began = time.perf_counter()
    scored = _scored(subject)
    seconds = {"scores": round(time.perf_counter() - began, 1)}
    reference = float_logits(subject.network, subject.held_out)
    kept = Kept(subject, METHODS, "cells")
    kept.document |= {"refined_on": REFINED_ON[name], "threads": threads, "seconds": seconds}
    evaluations = most or EVALUATIONS[name]
    for budget in budgets:
        found = {}
        for method, plan, account in _plans(subject, scored, budget, evaluations):
            found[method] = account | _judged(
                subject, reference, plan, finalize_nearest(subject.network, plan)
            )
        kept.keep(budget, found)


def measure_by_gptq(name: str, budgets: list[str], samples: int, most: int | None, threads: int) -> None:
    """The same with plans for GPTQ: what it makes of the weights is scored, moved and judged."""
    subject = load_subject(name, samples)
    some = subject.calibration.part(slice(GPTQ_ON[name]))
    weights = GptqOptions(subject.network, some, Quantizer())
    nearest, scored = _scored(subject), _scored(subject, weights)
    reference = float_logits(subject.network, subject.held_out)
    kept = Kept(subject, BY_GPTQ, "gptq")
    kept.document |= {"gptq_on": GPTQ_ON[name], "gptq_threads": threads, "gptq_before_damping": False}
    evaluations = most or BY_GPTQ_EVALUATIONS
    for budget in budgets:
        found = {}
        plans = [(method, _solved(*nearest, budget, method), {}) for method in (LAYER, CHANNEL_JOINT)]
        for method, plan, account in _plans(subject, scored, budget, evaluations, weights):
            plans.append((AFTER_GPTQ[method], plan, account))
        for method, plan, account in plans:
            began = time.perf_counter()
            finalized = Gptq().finalize(subject.network, plan, some)
            account = {"gptq_seconds": round(time.perf_counter() - began, 1), **account}
            found[method] = account | _judged(subject, reference, plan, finalized)
        kept.keep(budget, found)


class Kept:
    """What is known of a network, in results/dial_<network>.json; one part of it is measured here."""

    def __init__(self, subject: Subject, rows: tuple[str, ...], part: str) -> None:
        self._path, self._part = RESULTS / f"dial_{subject.name}.json", part
        before = json.loads(self._path.read_text()) if self._path.exists() else {}
        named = {
            "network": subject.name,
            "calibration": subject.calibration.name,
            "held_out": subject.held_out.name,
        }
        self.document: dict[str, Any] = before if before.get("calibration") == named["calibration"] else {}
        self.document |= named
        self._cells = self.document.setdefault(part, {})
        for row in rows:
            self._cells.setdefault(row, {})

    def keep(self, budget: str, found: dict[str, dict[str, Any]]) -> None:
        """Write the cells of one budget; those of others stay."""
        for row, cell in found.items():
            self._cells[row][budget] = cell
        self._path.write_text(json.dumps(self.document, indent=1) + "\n")
        print(self._path.stem, budget, {row: cell["kl"] for row, cell in found.items()}, flush=True)


def _plans(
    subject: Subject,
    scored: tuple[Profile, ProfileArrays | None],
    budget: str,
    evaluations: int,
    weights: OptionWeights | None = None,
) -> Iterator[tuple[str, Plan, dict[str, Any]]]:
    """The plans of a budget, the refined one last, each with the account of how it was found."""
    plans = []
    for method in METHODS[:4]:
        began = time.perf_counter()
        plans.append(_solved(*scored, budget, method))
        yield method, plans[-1], {"seconds": round(time.perf_counter() - began, 1)}
    began = time.perf_counter()
    task = pose_task(*scored, budget, "channel")
    refined = refine(
        subject.network,
        subject.calibration.part(slice(REFINED_ON[subject.name])),
        task,
        [task.choice_within(plan) for plan in plans],
        evaluations if budget in LOW_END else evaluations // 3,
        weights=weights,
    )
    account = {
        "evaluations": len(refined.steps),
        "accepted": sum(step.best for step in refined.steps),
        "calibration_loss": [refined.start_loss, refined.loss],
        "seconds": round(time.perf_counter() - began, 1),
    }
    yield REFINED, task.plan_of(refined.choice), account


def _scored(subject: Subject, weights: OptionWeights | None = None) -> tuple[Profile, ProfileArrays | None]:
    return measure_profile(
        subject.network,
        subject.calibration,
        parse_options("w2..8"),
        settings=FisherSettings(factor_rows=512),
        after="gptq" if weights else "nearest",
        weights=weights,
    )


def _solved(profile: Profile, arrays: ProfileArrays | None, budget: str, method: str) -> Plan:
    objective = Objective.JOINT if "joint" in method else Objective.ADDITIVE
    unit = "layer" if "layer" in method else "channel"
    return solve_plan(profile, arrays, budget, unit, objective=objective)


def write_page() -> None:
    """Write results/dial.{json,md,png} from what was measured."""
    paths = (RESULTS / f"dial_{name}.json" for name in NETWORKS)
    measured = [json.loads(path.read_text()) for path in paths if path.exists()]
    # One that is still being measured has fewer budgets.
    found = [document for document in measured if _complete(document["cells"], REFINED)]
    by_gptq = [document for document in measured if _complete(document.get("gptq", {}), AFTER_GPTQ[REFINED])]
    tables = []
    for document in found:
        name = document["network"]
        title = f"{name}: {document['calibration']}, judged on {document['held_out']}"
        tables += _quality_tables(document["cells"], METHODS, title)
        if document in by_gptq:
            title = f"by GPTQ on {document['gptq_on']} images, {name}"
            tables += _quality_tables(document["gptq"], BY_GPTQ, title)
        title = f"Refining {name}, on the images that decide"
        tables.append(_account(document["cells"][REFINED], title))
        if document in by_gptq:
            tables.append(_account(document["gptq"][AFTER_GPTQ[REFINED]], f"{title}, by GPTQ"))
    means = _means(found, "cells", METHODS)
    above = _above(found, "cells", REFINED)
    seen = [f"{document['refined_on']:,} of the images of {document['network']}" for document in found]
    notes = [
        "Weights only, options w2 to w8 with one step per channel, overheads counted in the average bits. KL "
        "to the float network on held-out images. Rounded to nearest, geometric mean of the ratio to "
        f"per-layer additive plans over all budgets and networks: refined **{means[REFINED]:.3f}** (target "
        f"{TARGET}), per channel joint {means[CHANNEL_JOINT]:.3f}, per channel additive "
        f"{means[CHANNEL]:.3f}, per layer joint {means[LAYER_JOINT]:.3f}. {_said(above)}",
        "Refined: by measured moves from the best of the other four plans, those per layer with some "
        "channels in fewer bits to make room for saying which channel has which option. It sees "
        f"{', '.join(seen)}; moves come from one half and are accepted on it, the other half decides which "
        "plan of the path is returned.",
    ]
    data = {"means": means, "networks": [document["network"] for document in found]}
    if by_gptq:
        after = _means(by_gptq, "gptq", BY_GPTQ)
        ratios = ", ".join(f"{row} {after[row]:.3f}" for row in BY_GPTQ if row != LAYER)
        notes.append(
            f"By GPTQ ({', '.join(each['network'] for each in by_gptq)}), the reference too, which keeps its "
            f"scores of nearest rounding: {ratios}. Scores after GPTQ are of what it makes of every option "
            "on the float network's inputs, and so are the weights that moves are measured of. "
            f"{_said(_above(by_gptq, 'gptq', AFTER_GPTQ[REFINED]))}"
        )
        data |= {"means by GPTQ": after, "networks by GPTQ": [each["network"] for each in by_gptq]}
    by_class = [
        f"{document['network']} at {budget}"
        for document in found
        for budget in BUDGETS
        if document["cells"][REFINED][budget].get("halves") == "by class"
    ]
    if by_class:
        notes.append(
            f"Refined before samples were spread, with halves sorted by class: {', '.join(by_class)}."
        )
    before = [each["network"] for each in by_gptq if each.get("gptq_before_damping")]
    if before:
        notes.append(
            "By GPTQ before its Gram matrices were damped by halves of the images, see gptq.md: "
            f"{', '.join(before)}."
        )
    notes.append("The seconds are those of a machine that did other work beside it.")
    write_report(
        "dial", "The continuous dial at equal size", "python benchmarks/dial.py", tables, notes, data
    )
    _draw(found, by_gptq).savefig(RESULTS / "dial.png", dpi=120)


Cells = dict[str, dict[str, dict[str, Any]]]


def _complete(cells: Cells, row: str) -> bool:
    return set(cells.get(row, {})) == set(BUDGETS)


def _quality_tables(cells: Cells, rows: tuple[str, ...], title: str) -> list[Table]:
    losses = [[row, *(cells[row][b]["kl"] for b in BUDGETS), _ratio(cells, row)] for row in rows]
    right = [[row, *(round(100 * cells[row][b]["accuracy"], 2) for b in BUDGETS)] for row in rows]
    header = ["average stored bits", *BUDGETS]
    return [
        Table(f"KL, {title}", [*header, "ratio to reference"], losses),
        Table(f"Top-1 in percent, {title}", header, right),
    ]


def _account(cells: dict[str, dict[str, Any]], title: str) -> Table:
    rows = [
        [
            budget,
            cells[budget]["evaluations"],
            cells[budget]["accepted"],
            *cells[budget]["calibration_loss"],
            cells[budget]["seconds"],
        ]
        for budget in BUDGETS
    ]
    return Table(
        title, ["budget", "moves measured", "bettered", "loss before", "loss after", "seconds"], rows
    )


def _means(found: list[dict[str, Any]], part: str, rows: tuple[str, ...]) -> dict[str, float]:
    """Geometric mean of every row's ratio over all budgets and networks."""
    return {
        row: math.exp(sum(math.log(_ratio(each[part], row)) for each in found) / len(found)) for row in rows
    }


def _above(found: list[dict[str, Any]], part: str, row: str) -> list[str]:
    """Where a row is not below the reference."""
    return [
        f"{each['network']} at {budget}"
        for each in found
        for budget in BUDGETS
        if each[part][row][budget]["kl"] >= each[part][LAYER][budget]["kl"]
    ]


def _said(above: list[str]) -> str:
    if above:
        return f"Refined is not below the reference at: {', '.join(above)}."
    return "Refined is below the reference at every budget on every network."


def _judged(subject: Subject, reference: torch.Tensor, plan: Plan, finalized: Finalized) -> dict[str, Any]:
    quality = measure_finalized(subject.network, finalized, subject.held_out, reference)
    certificate = plan.certificate
    return {
        "kl": quality.loss,
        "standard_error": quality.standard_error,
        "accuracy": quality.accuracy,
        "average_bits": plan.complexity.average_bits,
        "predicted": plan.predicted_loss,
        "relative_gap": certificate.relative_gap if certificate else None,
    }


def _ratio(cells: Cells, row: str) -> float:
    """Geometric mean over the budgets of a row's KL over that of the reference."""
    logs = [math.log(cells[row][budget]["kl"] / cells[LAYER][budget]["kl"]) for budget in BUDGETS]
    return math.exp(sum(logs) / len(logs))


COLORS = ("#000000", "#999999", "#56B4E9", "#0072B2", "#D55E00")


def _draw(found: list[dict[str, Any]], by_gptq: list[dict[str, Any]]) -> Figure:
    """Networks side by side, by GPTQ below."""
    columns = max(len(found), len(by_gptq))
    above = dict(zip(METHODS, zip(COLORS, "xsod^", strict=True), strict=True))
    below = {AFTER_GPTQ[row]: style for row, style in above.items()}
    below |= {LAYER: ("#CC79A7", "v"), CHANNEL_JOINT: ("#009E73", "<")}
    parts = [("cells", "rounded to nearest", above, found), ("gptq", "by GPTQ", below, by_gptq)]
    parts = [part for part in parts if part[3]]
    figure = Figure(figsize=(4.6 * columns, 4.4 * len(parts)), layout="constrained")
    for line, (part, how, styles, documents) in enumerate(parts):
        for index, document in enumerate(documents):
            axes = figure.add_subplot(len(parts), columns, line * columns + index + 1)
            for row, (color, marker) in styles.items():
                cells = document[part][row]
                points = [(cells[budget]["average_bits"], cells[budget]["kl"]) for budget in BUDGETS]
                axes.plot(*zip(*points, strict=True), color=color, marker=marker, label=row)
            axes.set_yscale("log")
            axes.set_xlabel("average stored bits per weight")
            axes.set_title(f"{document['network']}, {how}")
            axes.grid(alpha=0.3)
            if index == 0:
                axes.set_ylabel("KL to the float network, held-out images")
                axes.legend(frameon=False, fontsize=7)
    return figure


if __name__ == "__main__":
    main()
