"""Certificates on the profiles of real networks, per layer and per channel.

python benchmarks/certificates.py
"""

from __future__ import annotations

import argparse
import time
from typing import Literal

import torch
from networks import NETWORKS, load_subject
from report import Table, write_report

from apportion.quantizer import parse_options
from apportion.sensitivity import measure_profile, solve_plan

BUDGETS = ("2.5b", "3b", "3.5b", "4b", "4.5b", "5b", "6b", "7b")
UNITS: tuple[Literal["layer", "channel"], ...] = ("layer", "channel")
SAMPLES = 64


def main() -> None:
    """Write results/certificates.{json,md}."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    rows: list[list[object]] = []
    for name in NETWORKS:
        subject = load_subject(name, SAMPLES)
        scored = measure_profile(subject.network, subject.calibration, parse_options("w2..8"))
        for unit in UNITS:
            units = sum(1 if unit == "layer" else layer.channels for layer in scored[0].layers)
            gaps, states, spare = [], set(), []
            began = time.perf_counter()
            for budget in BUDGETS:
                plan = solve_plan(*scored, budget, unit)
                assert plan.certificate is not None
                gaps.append(plan.certificate.relative_gap)
                states.add(str(plan.certificate.status))
                unspent = float(budget.removesuffix("b")) - plan.complexity.average_bits
                spare.append(unspent * plan.complexity.weight_count)
                assert unspent >= 0
            seconds = (time.perf_counter() - began) / len(BUDGETS)
            rows.append([name, unit, units, max(gaps), "; ".join(sorted(states)), max(spare), seconds])
            print(rows[-1], flush=True)
    header = [
        "network",
        "unit",
        "units",
        "greatest relative gap",
        "status",
        "most unspent bits",
        "s per plan",
    ]
    write_report(
        "certificates",
        "Certificates on real profiles",
        "python benchmarks/certificates.py",
        [Table(f"Budgets {', '.join(BUDGETS)}, options w2 to w8", header, rows)],
        [
            f"Fisher scores from {SAMPLES} calibration images; only solving matters here. No plan is over "
            "its budget. Seconds include building the problem and the plan."
        ],
        {"rows": rows},
    )


if __name__ == "__main__":
    main()
