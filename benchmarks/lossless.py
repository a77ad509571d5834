"""Average bits that a network needs to lose at most 0.1 points of accuracy.

    python benchmarks/lossless.py cifar10_resnet20

With all options (one point of 2 to 8 bits, or several points of fewer), on hardware that knows 4 bits or 2
bits only and adds up to four points, and with one option for all layers. Scores see calibration images alone;
the drop is measured on all labelled test images, the search's evaluations included. Networks are measured one
by one, and the page is written from all that were measured so far.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
from networks import NETWORKS, RESNET, VIT, Subject, load_subject
from report import RESULTS, Table, write_report

from apportion.allocator import (
    DropKind,
    Measured,
    Plan,
    Tolerance,
    average_budget,
    lower_frontier,
    parse_tolerance,
)
from apportion.errors import InfeasibleError
from apportion.network import float_logits
from apportion.quantizer import parse_options
from apportion.reconstruct import Way, finalize_nearest, find_least, measure_finalized
from apportion.sensitivity import Profile, ProfileArrays, measure_profile, pose, solve_plan, uniform_plans

NAME = "lossless"
LIMIT = "0.1%"
OPTION_SETS = {
    "all options": "w2..8,w2x2..4,w3x2,w4x2,w5x2,w6x2",
    "4-bit hardware": "w4x1..4",
    "2-bit hardware": "w2x1..4",
}
UNITS = ("channel", "layer")
SAMPLES = {RESNET: 1024, VIT: 256}

Row = dict[str, Any]


def main() -> None:
    """Measure the networks named on the command line and write the page of all that were."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("networks", nargs="+", choices=NETWORKS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sets", nargs="+", choices=OPTION_SETS, default=list(OPTION_SETS))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.networks:
        subject = load_subject(name, SAMPLES.get(name, 512))
        for chosen in arguments.sets:
            known = _known()
            before = known.get(name, {}).get("rows", [])
            rows = [row for row in before if row["options"] != chosen] + measure(subject, chosen)
            rows.sort(key=lambda row: list(OPTION_SETS).index(row["options"]))
            known[name] = {
                "data": subject.held_out.name,
                "calibration": subject.calibration.name,
                "rows": rows,
            }
            _write({name: known[name] for name in NETWORKS if name in known})


def measure(subject: Subject, name: str) -> list[Row]:
    """The rows of an option set: per channel, per layer and uniform."""
    tolerance = parse_tolerance(LIMIT)
    began = time.perf_counter()
    profile, arrays = measure_profile(subject.network, subject.calibration, parse_options(OPTION_SETS[name]))
    print(f"{subject.name}, {name}: scores {time.perf_counter() - began:.0f} s", flush=True)
    return [
        *({"options": name, **_least(subject, profile, arrays, unit, tolerance)} for unit in UNITS),
        {"options": name, **_least_uniform(subject, profile, tolerance)},
    ]


def _least(
    subject: Subject, profile: Profile, arrays: ProfileArrays | None, unit: str, tolerance: Tolerance
) -> Row:
    def solved(bits: int) -> Plan:
        return solve_plan(profile, arrays, average_budget(bits, profile.weight_count), unit)

    began = time.perf_counter()
    posed = pose(profile, arrays, unit)
    way = Way(lower_frontier(posed.problem), posed.least_bits, solved)
    try:
        found = find_least(
            subject.network,
            subject.held_out,
            tolerance,
            [way],
            lambda plan: finalize_nearest(subject.network, plan),
            on_trial=lambda trial: print(f"  {trial.average_bits:.3f} {trial.drop.described()}", flush=True),
        )
    except InfeasibleError as error:
        print(f"  {error}", flush=True)
        return {"choice": f"per {unit}", "reason": str(error)}
    search = found.plan.search
    assert search is not None
    return {
        "choice": f"per {unit}",
        **_outcome(found.plan, found.quality),
        "evaluations": len(search.trials),
        "seconds": round(time.perf_counter() - began, 1),
        "trials": [trial.model_dump(mode="json") for trial in search.trials],
    }


def _least_uniform(subject: Subject, profile: Profile, tolerance: Tolerance) -> Row:
    """The smallest uniform plan within; all are measured, since drops need not fall with the bits."""
    began = time.perf_counter()
    reference = float_logits(subject.network, subject.held_out)
    measured: list[tuple[Plan, Measured]] = []
    for plan in sorted(uniform_plans(profile).values(), key=lambda plan: plan.complexity.size_bits):
        quality = measure_finalized(
            subject.network,
            finalize_nearest(subject.network, plan),
            subject.held_out,
            reference,
            drop=DropKind.ACCURACY,
        )
        assert quality.drop is not None
        print(f"  uniform {plan.main_option()} {quality.drop.described()}", flush=True)
        measured.append((plan, quality))
        if quality.drop.value <= tolerance.value:
            return {
                "choice": f"uniform {plan.main_option()}",
                **_outcome(plan, quality),
                "evaluations": len(measured),
                "seconds": round(time.perf_counter() - began, 1),
            }
    best, quality = min(measured, key=lambda pair: pair[1].drop.value if pair[1].drop else 0.0)
    assert quality.drop is not None
    return {"choice": "uniform", "reason": f"{best.main_option()} has {quality.drop.described()}"}


def _outcome(plan: Plan, quality: Measured) -> Row:
    assert quality.drop is not None
    return {
        "average_bits": plan.complexity.average_bits,
        "drop": quality.drop.value,
        "low": quality.drop.low,
        "high": quality.drop.high,
        "kl": quality.loss,
        "float_accuracy": quality.float_accuracy,
    }


def _known() -> dict[str, Any]:
    path = RESULTS / f"{NAME}.json"
    return dict(json.loads(path.read_text())["data"]) if path.exists() else {}


def _write(networks: dict[str, Any]) -> None:
    header = ["options", "choice", "bits per weight", "drop in points (95%)", "KL", "evaluations", "seconds"]
    tables = [
        Table(
            f"{name}: {results['data']}, float top-1 {_float_accuracy(results['rows'])}",
            header,
            [_cells(row) for row in results["rows"]],
        )
        for name, results in networks.items()
    ]
    sets = "; ".join(f"{name}: `{text}`" for name, text in OPTION_SETS.items())
    notes = [
        "The least average stored bits per quantized weight, overheads counted, whose measured top-1 drop is "
        f"at most {LIMIT}, by nearest rounding of weights alone. {sets}. The uniform row is the "
        "least option of the set that is within when all layers have it.",
        "The point value decides. The interval is the paired 95% one on the same images; where it reaches "
        "beyond 0.1, these images cannot tell the true drop from the limit. The same images found and judge "
        "each plan, so the drops are slightly optimistic. One point of few bits and two of half as many are "
        "different options: points have a step each, which is counted.",
    ]
    write_report(
        NAME,
        "Lossless: bits needed for at most 0.1 points of accuracy",
        f"python benchmarks/lossless.py {' '.join(networks)}",
        tables,
        notes,
        networks,
    )


def _float_accuracy(rows: list[Row]) -> str:
    known = [row["float_accuracy"] for row in rows if row.get("float_accuracy") is not None]
    return f"{100 * known[0]:.2f}%" if known else "-"


def _cells(row: Row) -> list[object]:
    if "average_bits" not in row:
        return [row["options"], row["choice"], None, f"none within: {row['reason']}", None, None, None]
    interval = f"{100 * row['drop']:.2f} ({100 * row['low']:.2f} to {100 * row['high']:.2f})"
    return [
        row["options"],
        row["choice"],
        f"{row['average_bits']:.3f}",
        interval,
        row["kl"],
        row["evaluations"],
        row["seconds"],
    ]


if __name__ == "__main__":
    main()
