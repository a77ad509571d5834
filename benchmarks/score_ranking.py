"""Which score ranks plans as they will be after reconstruction: rank correlations over many plans.

    python benchmarks/score_ranking.py

Plans of equal size are solved from disturbed scores, per layer and per channel, and each is reconstructed by
a short BRECQ. Every candidate of a score predicts the loss of every plan; what counts is whether it puts them
in the order of their measured loss on images that nothing has seen. Rows are kept one by one.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from bench import JUDGED_ON, plan_by_hand
from kept import KeptRows, Row
from networks import RESNET, Subject, load_subject
from numpy.typing import NDArray
from report import Table, write_report
from scipy.stats import spearmanr

from apportion.allocator import JointProblem, Plan, solve_multi
from apportion.network import Data
from apportion.quantizer import Quantizer, parse_options
from apportion.reconstruct import (
    Gptq,
    GptqOptions,
    LearnedRounding,
    Learning,
    Method,
    Nearest,
    measure_finalized,
)
from apportion.sensitivity import (
    Profile,
    ProfileArrays,
    Task,
    joint_problem,
    measure_profile,
    pose_task,
)

NAME = "score_ranking"
BUDGETS = ("2.35b", "2.85b")
UNITS = ("layer", "channel")
PLANS = 6
LAYER_NOISE, CHANNEL_NOISE = 1.0, 0.7
MEASURED = ("w2", "w3", "w4")
"""Widths at which every block is reconstructed for its correction factor; wider ones have that of w4."""
REFERENCE = "w4"
POWERS = (0.5, 0.75)
Scores = tuple[Profile, ProfileArrays]


def main() -> None:
    """Measure what is missing and write results/score_ranking.{json,md} after every row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--iterations", type=int, default=250)
    parser.add_argument("--plans", type=int, default=PLANS, help="of each unit at each budget")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    subject = load_subject(RESNET, 2 * arguments.samples)
    settings = {"samples": arguments.samples, "iterations": arguments.iterations}
    kept = KeptRows(NAME, settings, lambda rows: write(settings, rows))
    bench = Bench(subject, LearnedRounding(learning=Learning(iterations=arguments.iterations)))
    for block in subject.network.blocks:
        for option in MEASURED if block.layers else ():
            key = f"block: {' '.join(layer.name for layer in block.layers)}: {option}"
            if key not in kept.rows:
                kept.add(key, {"kl": bench.block_loss([layer.name for layer in block.layers], option)})
    factors = bench.factors(kept.rows)
    for budget in BUDGETS:
        for unit in UNITS:
            for number in range(arguments.plans):
                key = f"plan: {budget}: {unit}: {number}"
                if key not in kept.rows:
                    kept.add(key, bench.row(bench.plan(budget, unit, number), budget, factors))


class Bench:
    """A network with its scores, and what plans are predicted and measured to lose."""

    def __init__(self, subject: Subject, brecq: LearnedRounding) -> None:
        self.network, self.brecq = subject.network, brecq
        inputs, half = subject.calibration.inputs, len(subject.calibration.inputs) // 2
        self.calibration = Data(inputs[:half], None, "training images")
        self.looks = Data(inputs[half:], None, "further training images")
        self.judge = Data(subject.held_out.inputs[:JUDGED_ON], None, subject.held_out.name)
        self.scores: dict[str, Scores] = {}
        weights = GptqOptions(self.network, self.calibration, Quantizer(), unseen=True)
        for name, own in (("nearest", None), ("gptq", weights)):
            profile, arrays = measure_profile(
                self.network, self.calibration, parse_options("w2..8"), after=name, weights=own
            )
            assert arrays is not None
            self.scores[name] = profile, arrays
        self._joint: dict[tuple[str, str, str], JointProblem] = {}

    def loss(self, method: Method, plan: Plan, data: Data) -> float:
        """Measured KL of a plan's weights by a method."""
        return measure_finalized(
            self.network, method.finalize(self.network, plan, self.calibration), data
        ).loss

    def block_loss(self, names: Sequence[str], option: str) -> float:
        """KL on further images when one block is reconstructed at an option, all else at 8 bits."""
        chosen = {layer.name: option if layer.name in names else "w8" for layer in self.network.layers}
        return self.loss(self.brecq, plan_by_hand(self.network, chosen), self.looks)

    def factors(self, rows: Mapping[str, Row]) -> NDArray[np.float64]:
        """Loss of every layer's block after reconstruction over the sum of its layers' scores.

        Shape (layers, options).
        """
        profile = self.scores["nearest"][0]
        by_layer = self._layer_losses("nearest")
        factors = np.ones_like(by_layer)
        names = [layer.name for layer in profile.layers]
        for block in self.network.blocks:
            inside = [names.index(layer.name) for layer in block.layers]
            for option in MEASURED if inside else ():
                after = rows[f"block: {' '.join(layer.name for layer in block.layers)}: {option}"]["kl"]
                column = profile.options.index(option)
                factors[inside, column] = after / by_layer[inside, column].sum()
            last = profile.options.index(MEASURED[-1])
            factors[inside, last + 1 :] = factors[inside, last, None]
        return factors

    def plan(self, budget: str, unit: str, number: int) -> Plan:
        """Solved from scores of nearest weights (even numbers) or GPTQ's; the first two are undisturbed."""
        task = self._task("gptq" if number % 2 else "nearest", budget, unit)
        posed, units = task.posed, task.problem.units
        drawn = np.random.default_rng(number)
        factor = np.zeros(units)
        for row in range(len(task.profile.layers)):
            own = np.unique(posed.member[posed.starts[row] : posed.starts[row + 1]])
            factor[own] = drawn.normal(0, LAYER_NOISE)
        if unit == "channel":
            factor += drawn.normal(0, CHANNEL_NOISE, units)
        if number < 2:
            factor[:] = 0
        problem = replace(task.problem, loss=task.problem.loss * np.exp(factor)[:, None])
        return task.plan_of(solve_multi(problem).choice)

    def row(self, plan: Plan, budget: str, factors: NDArray[np.float64]) -> Row:
        """All predictions for a plan, and what it loses after BRECQ on images that nothing has seen."""
        nearest = self._losses("nearest", plan.unit)
        reference = nearest[:, self.scores["nearest"][0].options.index(REFERENCE), None]
        wide = self._wide(factors, plan.unit)
        predicted = {
            "nearest, additive": self._sum(nearest, plan),
            "nearest, joint": self._joint_loss("nearest", plan, budget),
            "after GPTQ, additive": self._sum(self._losses("gptq", plan.unit), plan),
            "after GPTQ, joint": self._joint_loss("gptq", plan, budget),
            "nearest, by block after a short BRECQ": self._sum(nearest * wide, plan),
        }
        for power in POWERS:
            damped = np.where(nearest > reference, nearest**power * reference ** (1 - power), nearest)
            predicted[f"nearest, growth below {REFERENCE} to the power {power}"] = self._sum(damped, plan)
        predicted["measured after rounding to nearest"] = self.loss(Nearest(), plan, self.looks)
        predicted["measured after GPTQ"] = self.loss(Gptq(), plan, self.looks)
        return {
            "average_bits": plan.complexity.average_bits,
            "predicted": predicted,
            "kl": self.loss(self.brecq, plan, self.judge),
        }

    def _task(self, score: str, budget: str, unit: str) -> Task:
        return pose_task(*self.scores[score], budget, unit)

    def _layer_losses(self, score: str) -> NDArray[np.float64]:
        profile = self.scores[score][0]
        return np.array([[one.loss for one in layer.scores] for layer in profile.layers])

    def _losses(self, score: str, unit: str) -> NDArray[np.float64]:
        """Loss of every option, (layers or channels of all layers, options)."""
        if unit == "layer":
            return self._layer_losses(score)
        return self.scores[score][1].channel_loss.numpy()

    def _wide(self, by_layer: NDArray[np.float64], unit: str) -> NDArray[np.float64]:
        if unit == "layer":
            return by_layer
        return np.repeat(by_layer, [layer.strips for layer in self.scores["nearest"][0].layers], axis=0)

    def _sum(self, losses: NDArray[np.float64], plan: Plan) -> float:
        options = self.scores["nearest"][0].options
        chosen = [
            options.index(option)
            for layer in plan.layers
            for option in ([layer.option] if plan.unit == "layer" else layer.strip_options())
        ]
        return float(losses[np.arange(len(chosen)), chosen].sum())

    def _joint_loss(self, score: str, plan: Plan, budget: str) -> float:
        task, key = self._task(score, budget, plan.unit), (score, plan.unit, budget)
        if key not in self._joint:
            self._joint[key] = joint_problem(task)
        return float(self._joint[key].loss_of(task.choice_of(plan)))


def write(settings: dict[str, int], rows: dict[str, Row]) -> None:
    """Write the page of all plans that were measured."""
    plans = {tuple(key.split(": ")[1:3]): [] for key in rows if key.startswith("plan")}
    for key, row in rows.items():
        if key.startswith("plan"):
            plans[tuple(key.split(": ")[1:3])].append(row)
    groups = {f"{budget} per {unit}": found for (budget, unit), found in plans.items()}
    for budget in BUDGETS:
        both = [row for (own, _), found in plans.items() if own == budget for row in found]
        groups[f"{budget}, both units"] = both
    groups = {name: found for name, found in groups.items() if len(found) > 2}
    if not groups:
        return
    scores = list(next(iter(groups.values()))[0]["predicted"])
    correlations = [[score, *(_correlation(score, found) for found in groups.values())] for score in scores]
    regrets = [[score, *(_regret(score, found) for found in groups.values())] for score in scores]
    header = ["score", *(f"{name} ({len(found)})" for name, found in groups.items())]
    bits = [row["average_bits"] for found in plans.values() for row in found]
    notes = [
        f"cifar10_resnet20: {settings['samples']} training images for scores and reconstruction, "
        f"{settings['iterations']} iterations of BRECQ per block; true loss on the first {JUDGED_ON} test "
        f"images. Options w2 to w8, {min(bits):.2f} to {max(bits):.2f} stored bits. Plans are solved in turn "
        "from scores of nearest and of GPTQ'd weights; but for the first two of each group the losses are "
        f"multiplied by exp(normal), deviation {LAYER_NOISE} per layer and {CHANNEL_NOISE} per channel "
        "beside.",
        "`by block after a short BRECQ`: every block is reconstructed alone at "
        f"{', '.join(MEASURED)}, all else at w8; the scores of its layers are multiplied by what the block "
        "then loses over the sum of its layers' scores. `growth below w4`: a loss above that of w4 becomes "
        "loss(w4) (loss / loss(w4))^power. The "
        "measured ones are no scores but quick looks. These and the blocks' losses are measured on as many "
        "further training images.",
    ]
    write_report(
        NAME,
        "Scores and the loss after reconstruction",
        "python benchmarks/score_ranking.py",
        [
            Table("Spearman's rank correlation with the true loss (plans)", header, correlations),
            Table("Loss of the plan that the score puts first, over the least", header, regrets),
        ],
        notes,
        {"rows": rows},
    )


def _correlation(score: str, rows: Sequence[Row]) -> float:
    return float(spearmanr([row["predicted"][score] for row in rows], [row["kl"] for row in rows])[0])


def _regret(score: str, rows: Sequence[Row]) -> float:
    first = min(rows, key=lambda row: row["predicted"][score])
    return float(first["kl"] / min(row["kl"] for row in rows))


if __name__ == "__main__":
    main()
