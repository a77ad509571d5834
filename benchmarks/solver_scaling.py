"""Time, memory and gap of the solver from 50 layers to a million channels, beside HiGHS, cvxpy and CBC.

    python benchmarks/solver_scaling.py

Every solver meets every size in a process of its own, with one thread and at most 60 seconds; a solver that
exceeds them is skipped at larger sizes. Times include building the solver's model from the arrays.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import cvxpy
import numpy as np
import psutil
import pulp
from instances import channel_like, network_like
from matplotlib.figure import Figure
from numpy.typing import NDArray
from report import RESULTS, Table, write_report
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from apportion.allocator import Problem, lower_frontier, save_figure, solve

SIZES = ((50, 12), (150, 30), (2_000, 12), (20_000, 8), (100_000, 8), (1_000_000, 8))
FEW_UNITS = 2_000
"""Up to this many units are layers, beyond they are channels."""
AVERAGE_BITS = 4.0
LIMIT_S, STARTING_S = 60.0, 10.0
"""Seconds for a solver, and for its process to start and draw the instance."""
PEER_LP_OBJECTIVE = 100.0
"""What losses are scaled to for the others, whose tolerances are absolute."""
MARKERS = ("o", "s", "^", "D")


@dataclass(frozen=True)
class Run:
    """One solver at one size; all None where it was stopped or skipped, and `note` says which."""

    solver: str
    units: int
    options: int
    seconds: float | None = None
    memory_mb: float | None = None
    gap: float | None = None
    over_budget_bits: float | None = None
    proven_gap: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Answer:
    """Loss and cost in bits of what a solver returns, and the relative gap that it proves, where it says."""

    loss: float
    cost: float
    proven_gap: float | None = None


def main() -> None:
    """Write results/solver_scaling.{json,md,png,svg}, or be one of its processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", nargs=3, metavar=("SOLVER", "UNITS", "OPTIONS"), help=argparse.SUPPRESS)
    worker = parser.parse_args().worker
    if worker:
        print(json.dumps(measure(worker[0], int(worker[1]), int(worker[2]))))
        return
    runs: list[Run] = []
    for solver in SOLVERS:
        stopped = False
        for units, options in SIZES:
            skipped = Run(solver, units, options, note="skipped")
            runs.append(skipped if stopped else run_apart(solver, units, options))
            stopped = runs[-1].seconds is None
            print(runs[-1], flush=True)
    report(runs)


def run_apart(solver: str, units: int, options: int) -> Run:
    """Measure in a process of its own, which is stopped at the limit; its memory is watched from outside."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = [sys.executable, __file__, "--worker", solver, str(units), str(options)]
    began, peak_mb = time.monotonic(), 0.0
    stopped = Run(solver, units, options, note=f"over {LIMIT_S:.0f} s")
    with subprocess.Popen(command, env=os.environ | threads, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            peak_mb = max(peak_mb, family_mb(process.pid))
            if time.monotonic() - began > STARTING_S + LIMIT_S:
                kill_family(process.pid)
                return stopped
            time.sleep(0.01)
        printed = process.stdout.read() if process.stdout else ""
    if process.returncode:
        return Run(solver, units, options, note="failed")
    worker = json.loads(printed.strip().splitlines()[-1])
    run = Run(**worker["run"])
    if run.seconds is None or run.seconds > LIMIT_S:
        return stopped
    # What a short run uses between two looks is only known from inside.
    return replace(run, memory_mb=max(run.memory_mb or 0.0, peak_mb - worker["before_mb"]))


def family(pid: int) -> list[psutil.Process]:
    """A process and its children, as far as they still run."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def family_mb(pid: int) -> float:
    """Memory that a process and its children use now."""
    total = 0
    for member in family(pid):
        with contextlib.suppress(psutil.Error):
            total += member.memory_info().rss
    return total / 1e6


def kill_family(pid: int) -> None:
    """Stop a process and its children."""
    for member in family(pid):
        with contextlib.suppress(psutil.Error):
            member.kill()


def measure(solver: str, units: int, options: int) -> dict[str, object]:
    """Solve one instance and compare with the bound of the linear relaxation."""
    draw = network_like if units <= FEW_UNITS else channel_like
    problem = draw(units, options, 0, AVERAGE_BITS)
    before_mb = family_mb(os.getpid())
    peak_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    answer = SOLVERS[solver](problem)
    seconds = time.perf_counter() - began
    memory_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_before) / 1e3
    gap = answer.loss / lower_frontier(problem).bound(problem.budget) - 1
    over = max(answer.cost - problem.budget, 0.0)
    run = Run(solver, units, options, seconds, memory_mb, gap, over, answer.proven_gap)
    return {"run": asdict(run), "before_mb": before_mb}


def ours(problem: Problem) -> Answer:
    """The allocator."""
    solution = solve(problem)
    return Answer(solution.loss, solution.cost, solution.certificate.relative_gap)


def scipy_milp(problem: Problem) -> Answer:
    """HiGHS by scipy's `milp`, with a relative gap of 0."""
    one_each, cost = constraints(problem)
    scale = peer_scale(problem)
    result = milp(
        scale * problem.loss.ravel(),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(cost, ub=1)],
        integrality=1,
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    return of_shares(problem, np.round(result.x))


def cvxpy_lp(problem: Problem) -> Answer:
    """The linear relaxation by cvxpy, whose default solver it is left to choose."""
    one_each, cost = constraints(problem)
    shares = cvxpy.Variable(problem.loss.size, nonneg=True)
    objective = cvxpy.Minimize(peer_scale(problem) * problem.loss.ravel() @ shares)
    cvxpy.Problem(objective, [one_each @ shares == 1, cost @ shares <= 1]).solve()
    return of_shares(problem, shares.value)


def pulp_cbc(problem: Problem) -> Answer:
    """CBC by PuLP, with a relative gap of 0."""
    scale, loss, cost = peer_scale(problem), problem.loss.tolist(), problem.cost.tolist()
    model = pulp.LpProblem("allocation", pulp.LpMinimize)
    taken = [
        [pulp.LpVariable(f"x{unit}_{option}", cat="Binary") for option in range(problem.options)]
        for unit in range(problem.units)
    ]
    pairs = [(unit, option) for unit in range(problem.units) for option in range(problem.options)]
    model += pulp.LpAffineExpression(
        (taken[unit][option], scale * loss[unit][option]) for unit, option in pairs
    )
    for row in taken:
        model += pulp.LpAffineExpression((variable, 1) for variable in row) == 1
    used = pulp.LpAffineExpression(
        (taken[unit][option], cost[unit][option] / problem.budget) for unit, option in pairs
    )
    model += used <= 1
    model.solve(pulp.PULP_CBC_CMD(msg=False, gapRel=0.0, threads=1))
    return of_shares(problem, np.array([[variable.value() for variable in row] for row in taken]))


SOLVERS: dict[str, Callable[[Problem], Answer]] = {
    "apportion": ours,
    "HiGHS (scipy milp)": scipy_milp,
    "cvxpy (relaxation)": cvxpy_lp,
    "CBC (PuLP)": pulp_cbc,
}


def constraints(problem: Problem) -> tuple[sparse.csr_array, sparse.csr_array]:
    """One option for each unit, and the cost in parts of the budget."""
    one_each = sparse.kron(sparse.eye_array(problem.units), np.ones((1, problem.options)), format="csr")
    return sparse.csr_array(one_each), sparse.csr_array(problem.cost.reshape(1, -1) / problem.budget)


def peer_scale(problem: Problem) -> float:
    """Factor that brings the losses to where absolute tolerances do no harm."""
    return PEER_LP_OBJECTIVE / lower_frontier(problem).bound(problem.budget)


def of_shares(problem: Problem, shares: NDArray[np.float64]) -> Answer:
    """Loss and cost of options taken in these shares."""
    shares = shares.reshape(problem.loss.shape)
    return Answer(float((problem.loss * shares).sum()), float((problem.cost * shares).sum()))


def report(runs: list[Run]) -> None:
    """Write the page, the numbers and the chart."""
    by_size = {(run.solver, run.units): run for run in runs}
    sizes = [f"{units:,} x {options}" for units, options in SIZES]

    def table(title: str, value: Callable[[Run], object]) -> Table:
        rows = []
        for solver in SOLVERS:
            found = [by_size[solver, units] for units, _ in SIZES]
            rows.append([solver, *(run.note if run.seconds is None else value(run) for run in found)])
        return Table(title, ["solver", *sizes], rows)

    write_report(
        "solver_scaling",
        "Solver scaling",
        "python benchmarks/solver_scaling.py",
        [
            table("Seconds", lambda run: run.seconds),
            table("Peak memory added, MB", lambda run: run.memory_mb),
            table("Loss above the bound of the relaxation, relative", lambda run: run.gap),
            table("Bits over the budget", lambda run: run.over_budget_bits),
            Table(
                "Gap that apportion proves, relative",
                ["solver", *sizes],
                [["apportion", *(by_size["apportion", units].proven_gap for units, _ in SIZES)]],
            ),
        ],
        notes=[
            "Units are layers up to 2,000 (instances like networks), channels beyond; the budget is 4 bits "
            "per weight. Where units are few, the optimum itself lies visibly above the relaxation's bound; "
            "for cvxpy, which solves the relaxation, that table shows its error.",
            f"One thread and at most {LIMIT_S:.0f} s each, in a process of its own; times include building "
            "the model. The others get losses scaled to an objective of 100, and relative gaps of 0.",
            "![Seconds over number of units](solver_scaling.png)",
        ],
        data={"runs": [asdict(run) for run in runs]},
    )
    save_figure(draw(runs), RESULTS / "solver_scaling")


def draw(runs: list[Run]) -> Figure:
    """Seconds over the number of entries, both logarithmic."""
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for solver, marker in zip(SOLVERS, MARKERS, strict=True):
        found = [run for run in runs if run.solver == solver and run.seconds is not None]
        axes.loglog(
            [run.units * run.options for run in found],
            [run.seconds or math.nan for run in found],
            marker=marker,
            label=solver,
        )
    axes.set(xlabel="units x options", ylabel="seconds")
    axes.grid(linewidth=0.4, alpha=0.6)
    axes.legend()
    return figure


if __name__ == "__main__":
    main()
