"""Two and three budgets at once, from a thousand to a hundred thousand units, beside HiGHS's relaxation.

    python benchmarks/budgets.py

Both meet the same instance one after the other in one run, with one thread. HiGHS solves the linear
relaxation; ours is timed to the same relaxation, and then to a choice of whole options within all budgets.
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np
from instances import channel_like
from numpy.typing import NDArray
from report import Table, write_report
from scipy import sparse
from scipy.optimize import linprog

from apportion.allocator import MultiProblem, solve_multi
from apportion.allocator.dual import cut_to_prices
from apportion.allocator.residue import sift

UNITS = (1_000, 10_000, 100_000)
BUDGETS = (2, 3)
OPTIONS = 8
SEEDS = {1_000: 5, 10_000: 3, 100_000: 1}
PEER_OBJECTIVE = 100.0
NAMES = ("size", "bops", "latency")
TIGHTNESS = (0.3, 0.25, 0.5)
"""Each budget, between the least and the greatest total cost: all of them bind."""
HEADER = (
    "units",
    "budgets",
    "seed",
    "bound against HiGHS, relative",
    "budgets exceeded",
    "gap proven, relative",
    "status",
    "s, our bound",
    "s, our choice",
    "s, bound by HiGHS",
    "time ratio of the bounds",
)


def main() -> None:
    """Write results/budgets.{json,md}."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, nargs="*", default=UNITS, help="sizes to run")
    rows: list[list[object]] = []
    for units in parser.parse_args().units:
        for count in BUDGETS:
            for seed in range(SEEDS[units]):
                rows.append(measure(units, count, seed))
                print(rows[-1], flush=True)
    compared = [abs(float(str(row[3]))) for row in rows]
    write_report(
        "budgets",
        "Several budgets at once",
        "python benchmarks/budgets.py",
        [Table(f"{OPTIONS} options, budgets {', '.join(NAMES)}", HEADER, rows)],
        [
            "Units like channels: losses that fall fourfold a bit with noise; size in bits, operations that "
            "vary by layer, and a latency with steps in it. The bound is the value of the Lagrangian dual, "
            "summed over all options, so it owes nothing to a solver's tolerances; HiGHS's is the objective "
            "of the linear relaxation by scipy's `linprog` with its interior point method, which is several "
            "times faster here than its simplex method; losses scaled to an objective of "
            f"{PEER_OBJECTIVE:.0f}. One thread, one after the other in one run.",
            f"Greatest difference from HiGHS, relative: {max(compared, default=0.0):.2g}. Budgets "
            f"exceeded in all: {sum(int(str(row[4])) for row in rows)}.",
        ],
        {"header": HEADER, "rows": rows},
    )


def measure(units: int, count: int, seed: int) -> list[object]:
    """One instance: our bound, our choice, HiGHS's bound."""
    problem = several(units, count, seed)
    began = time.perf_counter()
    bound = sift(problem, cut_to_prices(problem)).priced.value
    bound_s = time.perf_counter() - began
    began = time.perf_counter()
    solution = solve_multi(problem)
    choice_s = time.perf_counter() - began
    exceeded = sum(
        cost > budget for cost, budget in zip(problem.costs_of(solution.choice), problem.budgets, strict=True)
    )
    began = time.perf_counter()
    peer = relaxed_by_highs(problem, PEER_OBJECTIVE / bound)
    peer_s = time.perf_counter() - began
    certificate = solution.certificate
    row: list[object] = [units, count, seed, bound / peer - 1, int(exceeded), certificate.relative_gap]
    row += [str(certificate.status).split(";")[0], bound_s, choice_s, peer_s, peer_s / bound_s]
    return row


def several(units: int, count: int, seed: int) -> MultiProblem:
    """Channels of `channel_like` with operations that vary by layer and a latency with steps in it."""
    single = channel_like(units, OPTIONS, seed, 4.0)
    rng = np.random.default_rng([seed, 1])
    fan_in = single.cost[:, 1] - single.cost[:, 0]
    layers, layer = np.unique(fan_in, return_inverse=True)
    positions = np.exp(rng.uniform(0, 5, len(layers))).astype(np.int64)[layer][:, None]
    bits, steps = np.arange(2, 2 + OPTIONS), np.array([1, 1, 1, 2, 2, 2, 2, 3])
    costs = np.stack(
        [single.cost, bits * fan_in[:, None] * positions, steps * fan_in[:, None] * 7 + positions]
    )[:count]
    least, most = costs.min(axis=2).sum(axis=1), costs.max(axis=2).sum(axis=1)
    budgets = [int(least[k] + TIGHTNESS[k] * (most[k] - least[k])) for k in range(count)]
    return MultiProblem(single.loss, costs, tuple(budgets), NAMES[:count])


def relaxed_by_highs(problem: MultiProblem, scale: float) -> float:
    """Least loss of the linear relaxation."""
    units, options = problem.loss.shape
    used: NDArray[np.float64] = problem.costs.reshape(len(problem.budgets), -1) / problem.limits[:, None]
    result = linprog(
        scale * problem.loss.ravel(),
        A_eq=sparse.kron(sparse.eye_array(units), np.ones((1, options)), format="csr"),
        b_eq=np.ones(units),
        A_ub=sparse.csr_array(used),
        b_ub=np.ones(len(problem.budgets)),
        method="highs-ipm",
        options={
            "dual_feasibility_tolerance": 1e-10,
            "primal_feasibility_tolerance": 1e-10,
        },
    )
    return float(result.fun) / scale


if __name__ == "__main__":
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    main()
