"""Whether the solver's optimum is one: against every choice, against HiGHS, and on adversarial instances.

    python benchmarks/optimality.py
    python benchmarks/optimality.py run/profile.json

Profiles named on the command line are solved per layer and per channel at several budgets.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import highspy
import numpy as np
from instances import ADVERSARIAL, adversarial, choices, least_loss, network_like
from numpy.typing import NDArray
from report import Table, write_report
from scipy import sparse

from apportion.allocator import Problem, Status, lower_frontier, solve
from apportion.errors import InfeasibleError
from apportion.sensitivity import budget_bits, problem_of, read_profile

SMALL_PER_KIND = 200
MOST_CHOICES = 20_000
HARD_PER_KIND = 200
BUDGETS = ("2.5b", "3.0b", "3.5b", "4.0b", "4.5b", "5.0b", "6.0b")
LP_OBJECTIVE = 100.0
"""What losses are scaled to for HiGHS, whose tolerances are absolute."""


def main() -> None:
    """Write results/optimality.{json,md}."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("profiles", nargs="*", type=Path)
    profiles = parser.parse_args().profiles
    tables = [against_every_choice(), adversarial_instances(), against_highs()]
    if profiles:
        tables.append(certificates(profile_problems(profiles)))
    write_report(
        "optimality",
        "Is the optimum one?",
        " ".join(["python benchmarks/optimality.py", *map(str, profiles)]),
        tables,
        notes=[
            "The solver reduces a problem to the options that its linear relaxation does not rule out, and "
            "searches those completely. `proven` counts the instances that end with a proof; the gap of a "
            "proof is the rounding of its float64 sums, and is part of the certificate.",
            "Adversarial instances have losses scaled by 1e-12 to 1e12 and costs of up to 2^50 bits. Those "
            "that end without a proof are subset sums in effect: no price rules any option out, and of costs "
            "that large few add up to the same sum.",
            "HiGHS runs with both gaps at 0 and losses scaled to an objective of 100. Its tolerance on the "
            "budget lets it exceed it by a few bits, which buys it a smaller loss; compared are the others.",
        ],
        data={table.title: {"header": table.header, "rows": table.rows} for table in tables},
    )


def against_every_choice() -> Table:
    """The solver's loss against the least over all choices, on instances small enough to try them."""
    rows: list[list[object]] = []
    for kind, name in enumerate(ADVERSARIAL):
        proven = worse = bound_above = 0
        instances = [adversarial(kind, seed, 7, 5) for seed in range(4 * SMALL_PER_KIND)]
        instances = [problem for problem in instances if choices(problem) <= MOST_CHOICES][:SMALL_PER_KIND]
        for problem in instances:
            solution, best = solve(problem), least_loss(problem)
            proven += solution.certificate.status is Status.OPTIMAL
            worse += solution.loss - best > solution.certificate.gap
            bound_above += solution.certificate.bound > best
        rows.append([name, len(instances), proven, worse, bound_above])
    header = ["instances", "count", "proven", "loss above the least by more than the gap", "bound above it"]
    return Table("Against every choice (up to 7 units x 5 options)", header, rows)


def adversarial_instances() -> Table:
    """Whether choices stay within the budget, and how large the gaps are, on larger instances."""
    rows: list[list[object]] = []
    for kind, name in enumerate(ADVERSARIAL):
        over = proven = 0
        gaps: list[float] = []
        began = time.perf_counter()
        for seed in range(HARD_PER_KIND):
            problem = adversarial(kind, 10_000 + seed, 60, 12)
            solution = solve(problem)
            cost = sum(int(problem.cost[unit, option]) for unit, option in enumerate(solution.choice))
            over += cost > problem.budget or cost != solution.cost
            proven += solution.certificate.status is Status.OPTIMAL
            gaps.append(solution.certificate.relative_gap)
        seconds = (time.perf_counter() - began) / HARD_PER_KIND
        rows.append([name, HARD_PER_KIND, over, proven, max(gaps), seconds])
    header = ["instances", "count", "over budget", "proven", "greatest relative gap", "mean seconds"]
    return Table("Adversarial instances (up to 60 units x 12 options)", header, rows)


def against_highs() -> Table:
    """The solver against HiGHS with both gaps at 0 and losses scaled to suit it."""
    rows: list[list[object]] = []
    for units, options in ((20, 7), (20, 30), (50, 12), (100, 30), (150, 12), (150, 30)):
        differences: list[float] = []
        gaps: list[float] = []
        over: list[int] = []
        seconds = np.zeros(2)
        for seed, average in enumerate((2.5, 3.0, 3.5, 4.0, 5.0, 6.0)):
            problem = network_like(units, options, seed, average)
            times = [time.perf_counter()]
            solution = solve(problem)
            times.append(time.perf_counter())
            reference = highs_choice(problem)
            times.append(time.perf_counter())
            seconds += np.diff(times)
            gaps.append(solution.certificate.relative_gap)
            over.append(max(0, int(problem.cost_of(reference).sum()) - problem.budget))
            if not over[-1]:
                differences.append(solution.loss / math.fsum(problem.loss_of(reference)) - 1)
        exceeded = sum(bits > 0 for bits in over)
        rows.append(
            [f"{units} x {options}", len(gaps), max(gaps), *seconds, exceeded, max(over), max(differences)]
        )
    header = [
        "size",
        "count",
        "greatest relative gap",
        "seconds",
        "seconds of HiGHS",
        "HiGHS over budget",
        "by at most (bits)",
        "our loss over HiGHS's, else",
    ]
    return Table("Against HiGHS, on instances like networks", header, rows)


def highs_choice(problem: Problem) -> NDArray[np.intp]:
    """The choice that HiGHS calls optimal, with both gaps at 0; it may exceed the budget by its tolerance."""
    scale = LP_OBJECTIVE / lower_frontier(problem).bound(problem.budget)
    columns = problem.units * problem.options
    one_each = sparse.kron(sparse.eye_array(problem.units), np.ones((1, problem.options)))
    rows = sparse.csr_array(sparse.vstack([one_each, problem.cost.reshape(1, -1) / problem.budget]))
    model = highspy.HighsLp()
    model.num_col_, model.num_row_ = columns, problem.units + 1
    model.col_cost_ = scale * problem.loss.ravel()
    model.col_lower_, model.col_upper_ = np.zeros(columns), np.ones(columns)
    model.row_lower_ = np.append(np.ones(problem.units), -highspy.kHighsInf)
    model.row_upper_ = np.ones(problem.units + 1)
    model.integrality_ = [highspy.HighsVarType.kInteger] * columns
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    model.a_matrix_.start_, model.a_matrix_.index_ = rows.indptr, rows.indices
    model.a_matrix_.value_ = rows.data
    solver = highspy.Highs()
    for option, value in (("output_flag", False), ("mip_rel_gap", 0.0), ("mip_abs_gap", 0.0), ("threads", 1)):
        solver.setOptionValue(option, value)
    solver.passModel(model)
    solver.run()
    values = np.array(solver.getSolution().col_value).reshape(problem.loss.shape)
    return values.argmax(axis=1)


def certificates(problems: Sequence[tuple[str, Problem]]) -> Table:
    """What is proven about named problems."""
    rows: list[list[object]] = []
    for name, problem in problems:
        began = time.perf_counter()
        solution = solve(problem)
        seconds = time.perf_counter() - began
        certificate = solution.certificate
        rows.append(
            [
                name,
                problem.units,
                problem.options,
                certificate.objective,
                certificate.relative_gap,
                certificate.status is Status.OPTIMAL,
                problem.budget - solution.cost,
                seconds,
            ]
        )
    header = ["problem", "units", "options", "loss", "relative gap", "proven", "bits left", "seconds"]
    return Table("Certificates on real profiles", header, rows)


def profile_problems(paths: Sequence[Path]) -> list[tuple[str, Problem]]:
    """The problems that profiles pose, per layer and per channel, at the budgets that they can meet."""
    found: list[tuple[str, Problem]] = []
    for path in paths:
        profile, arrays = read_profile(path)
        for unit in ("layer", "channel") if arrays is not None else ("layer",):
            problem = problem_of(profile, arrays, unit, 0)
            for budget in BUDGETS:
                candidate = replace(problem, budget=budget_bits(profile, budget))
                try:
                    lower_frontier(candidate).vertex(candidate.budget)
                except InfeasibleError:
                    continue
                found.append((f"{path.parent.name}, per {unit}, {budget}", candidate))
    return found


if __name__ == "__main__":
    main()
