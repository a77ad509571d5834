"""A genetic algorithm on the scores that the exact solver gets: what each finds, and in what time.

    python benchmarks/genetic.py

BRECQ chooses the layers' widths by a genetic algorithm (Li et al., "BRECQ", ICLR 2021, section 3.4 and
appendix): a population of choices within the budget, of which the best are crossed and mutated. Here it
minimises the same sum of scores as the solver, per layer and per channel.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from networks import RESNET, load_subject
from numpy.typing import NDArray
from report import Table, write_report

from apportion.allocator import MultiProblem, solve_multi
from apportion.quantizer import parse_options
from apportion.sensitivity import measure_profile, pose_task

BUDGETS = ("2.5b", "3b", "3.5b", "4b")
UNITS = ("layer", "channel")
POPULATION, PARENTS, GENERATIONS, MUTATED = 50, 10, 100, 0.1
SEEDS = 3
REPAIRED_AT_ONCE = 0.02
"""Share of the units of a choice over its budget that lose bits before it is counted again."""


def main() -> None:
    """Write results/genetic.{json,md}."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--generations", nargs="+", type=int, default=[GENERATIONS, 10 * GENERATIONS])
    arguments = parser.parse_args()
    subject = load_subject(RESNET, arguments.samples)
    scores = measure_profile(subject.network, subject.calibration, parse_options("w2..8"))
    rows = []
    for unit in UNITS:
        for budget in BUDGETS:
            problem = pose_task(*scores, budget, unit).problem
            began = time.perf_counter()
            least = solve_multi(problem).certificate.objective
            solver = time.perf_counter() - began
            found: list[object] = []
            for generations in arguments.generations:
                began = time.perf_counter()
                losses = [evolve(problem, generations, seed) / least for seed in range(SEEDS)]
                taken = (time.perf_counter() - began) / SEEDS
                found += [min(losses), sum(losses) / SEEDS, max(losses), taken]
            rows.append([unit, budget, problem.units, least, solver, *found])
            print(rows[-1], flush=True)
    header = ["unit", "budget", "units", "least loss, proven", "seconds of the solver"]
    for generations in arguments.generations:
        header += [f"{generations:,} generations: best", "mean", "worst", "seconds"]
    notes = [
        f"cifar10_resnet20, Fisher scores of {arguments.samples} training images, options w2 to w8. Losses "
        f"of the genetic algorithm are over the solver's, of {SEEDS} seeds; seconds are of one run. "
        f"Population {POPULATION}, of which {PARENTS} are parents of the next: half of the children are "
        f"crossed, half have {MUTATED:.0%} of their units drawn anew, and children over the budget lose bits "
        "of random units until they fit. The first population is drawn at random.",
    ]
    write_report(
        "genetic",
        "Exact solver and genetic algorithm",
        "python benchmarks/genetic.py",
        [Table("Loss over the proven least", header, rows)],
        notes,
        {"header": header, "rows": rows},
    )


def evolve(problem: MultiProblem, generations: int, seed: int) -> float:
    """Least loss within the budget that the algorithm finds."""
    drawn = np.random.default_rng(seed)
    units, options = problem.loss.shape
    population = _fitted(problem, drawn.integers(options, size=(POPULATION, units)), drawn)
    for _ in range(generations):
        parents = population[np.argsort(_loss(problem, population))[:PARENTS]]
        one, other = (parents[drawn.integers(PARENTS, size=POPULATION - PARENTS)] for _ in range(2))
        children = np.where(drawn.random(one.shape) < 0.5, one, other)
        half = len(children) // 2
        mutated = drawn.random((half, units)) < MUTATED
        children[:half] = np.where(mutated, drawn.integers(options, size=(half, units)), one[:half])
        population = np.concatenate([parents, _fitted(problem, children, drawn)])
    return float(_loss(problem, population).min())


def _loss(problem: MultiProblem, choices: NDArray[np.int64]) -> NDArray[np.float64]:
    total: NDArray[np.float64] = problem.loss[np.arange(problem.units), choices].sum(1)
    return total


def _fitted(
    problem: MultiProblem, choices: NDArray[np.int64], drawn: np.random.Generator
) -> NDArray[np.int64]:
    """Choices with options of random units made smaller until all are within the budget."""
    cost, (limit,) = problem.costs[0], problem.budgets
    units, count = np.arange(problem.units), 1 + int(REPAIRED_AT_ONCE * problem.units)
    while True:
        over = np.flatnonzero(cost[units, choices].sum(1) > limit)
        if not len(over):
            return choices
        place = over[:, None], drawn.integers(problem.units, size=(len(over), count))
        choices[place] = np.maximum(choices[place] - 1, 0)


if __name__ == "__main__":
    main()
