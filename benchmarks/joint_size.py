"""What the joint objective takes at the size of a large network's channels: memory, time and gap.

    python benchmarks/joint_size.py

26,000 channels x 10 options whose projections fill 512 rows, as a profile keeps them: the shrinkage is chosen
on held-out rows, the plan is searched and bounded, all as `allocate solve` does it.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
from instances import channel_like
from report import Table, write_report

from apportion.allocator import JointProblem, MultiProblem, solve_joint
from apportion.sensitivity.joint import choose_shrinkage

UNITS, OPTIONS, ROWS = 26_000, 10, 512
AVERAGE_BITS = 4.0
SHARED = 0.3
"""Share of the variance of a projection that all channels of a sample have in common."""
LIMIT_GIB = 4.0


def main() -> None:
    """Write results/joint_size.{json,md}."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=UNITS)
    arguments = parser.parse_args()
    before = peak_gib()
    factors, problem = instance(arguments.units)
    held = peak_gib()
    began = time.perf_counter()
    shrinkage = choose_shrinkage(problem, factors)
    chosen_s, began = time.perf_counter() - began, time.perf_counter()
    linear = MultiProblem(
        (1 - shrinkage) * problem.loss, problem.costs, problem.budgets, problem.budget_names
    )
    solution = solve_joint(JointProblem(linear, np.float32(shrinkage**0.5) * factors))
    solved_s = time.perf_counter() - began
    peak = peak_gib()
    certificate = solution.certificate
    row = [
        arguments.units, OPTIONS, ROWS, held - before, peak, shrinkage, chosen_s, solved_s,
        certificate.relative_gap, solution.costs[0] <= problem.budgets[0],
    ]  # fmt: skip
    header = (
        "channels", "options", "rows", "GiB, the projections", "GiB, peak of the process", "shrinkage",
        "s, shrinkage", "s, plan and bound", "gap, relative", "within the budget",
    )  # fmt: skip
    print(dict(zip(header, row, strict=True)), flush=True)
    write_report(
        "joint_size",
        "The joint objective at 26,000 channels",
        "python benchmarks/joint_size.py",
        [Table("One run", header, [row])],
        [
            f"Peak resident memory of the whole process {peak:.2f} GiB, of {LIMIT_GIB:g} GiB allowed. Losses "
            "like those of channels, fourfold down a bit; projections drawn so that their squares are these "
            f"losses, with {100 * SHARED:.0f}% of the variance common to all channels of a row."
        ],
        {"header": header, "row": row},
    )


def instance(units: int) -> tuple[np.ndarray, MultiProblem]:
    """Projections (units, options, rows) and the additive problem that is their sum of squares."""
    single = channel_like(units, OPTIONS, 0, AVERAGE_BITS)
    rng = np.random.default_rng(1)
    factors = rng.standard_normal((units, 1, ROWS), np.float32) * np.float32((1 - SHARED) ** 0.5)
    factors += rng.standard_normal((1, 1, ROWS), np.float32) * np.float32(SHARED**0.5)
    factors = factors * np.sqrt(2 * single.loss / ROWS).astype(np.float32)[:, :, None]
    # Rounding of different widths has different signs.
    factors *= rng.choice(np.array([-1, 1], np.float32), (units, OPTIONS, 1))
    loss = np.einsum("uor,uor->uo", factors, factors).astype(np.float64) / 2
    return factors, MultiProblem(loss, single.cost[None], (single.budget,), ("size",))


def peak_gib() -> float:
    """Most resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
