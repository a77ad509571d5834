"""Instances of the allocation problem for benchmarks: like networks, like channels, and adversarial."""

from __future__ import annotations

import itertools
import math

import numpy as np

from apportion.allocator import Problem

__all__ = ["ADVERSARIAL", "adversarial", "channel_like", "choices", "least_loss", "network_like"]

ADVERSARIAL = (
    "scores unrelated to cost",
    "score is minus the cost (subset sum)",
    "all scores equal",
    "many ties, negative scores",
    "two parallel lines",
    "scores over 14 decades",
    "like a network",
    "units all the same",
    "one option",
    "one unit",
)
GREATEST_COST_BITS = 50


def network_like(units: int, options: int, seed: int, average_bits: float) -> Problem:
    """Layers of 500 to 3,000,000 weights with 16-bit steps; losses that fall fourfold a bit, with noise."""
    rng = np.random.default_rng(seed)
    weights = np.exp(rng.uniform(np.log(500), np.log(3e6), units)).astype(np.int64)
    channels = np.maximum(8, np.sqrt(weights).astype(np.int64) // 4)
    kinds = [(points, bits) for points in range(1, 6) for bits in range(2, 9)][:options]
    cost = np.stack([points * (bits * weights + 16 * channels) for points, bits in kinds], axis=1)
    depth = np.array([points * bits for points, bits in kinds])
    noise = np.exp(rng.normal(0, 0.3, cost.shape))
    loss = np.exp(rng.normal(-2, 2, units))[:, None] * 4.0 ** (2.0 - depth) * noise
    return Problem(loss, cost, int(average_bits * weights.sum()))


def channel_like(units: int, options: int, seed: int, average_bits: float) -> Problem:
    """Output channels of 60 layers with 9 to 4,000 weights each; losses as in `network_like`."""
    rng = np.random.default_rng(seed)
    layers = np.exp(rng.uniform(np.log(9), np.log(4000), 60)).astype(np.int64)
    fan_in = np.sort(layers[rng.integers(0, 60, units)])
    bits = np.arange(2, 2 + options)
    cost = bits * fan_in[:, None] + 16 + 3
    noise = np.exp(rng.normal(0, 0.3, cost.shape))
    loss = np.exp(rng.normal(-8, 2, units))[:, None] * 4.0 ** (2.0 - bits) * noise
    return Problem(loss, cost, int(average_bits * fan_in.sum() + 19 * units))


def adversarial(kind: int, seed: int, most_units: int, most_options: int) -> Problem:
    """A problem of a kind in `ADVERSARIAL`: losses scaled by 1e-12 to 1e12, costs of up to 2^50 bits."""
    rng = np.random.default_rng([kind, seed])
    name = ADVERSARIAL[kind]
    units = 1 if name == "one unit" else int(rng.integers(1, most_units + 1))
    options = 1 if name == "one option" else int(rng.integers(1, most_options + 1))
    greatest = int(2 ** rng.integers(1, GREATEST_COST_BITS + 1))
    cost = rng.integers(0, greatest + 1, (units, options))
    rank = np.argsort(np.argsort(cost, axis=1), axis=1)
    loss = rng.normal(size=cost.shape)
    if name == "score is minus the cost (subset sum)":
        loss = -cost.astype(float)
    elif name == "all scores equal":
        loss = np.full(cost.shape, float(rng.integers(0, 2)))
    elif name == "many ties, negative scores":
        loss = rng.integers(-3, 4, cost.shape).astype(float)
    elif name == "two parallel lines":
        loss = -0.1 * cost + rng.integers(0, 2, cost.shape) * 0.01 * greatest
    elif name == "scores over 14 decades":
        loss = np.exp(rng.normal(0, 8, cost.shape))
    elif name == "like a network":
        loss = 4.0**-rank * np.exp(rng.normal(0, 3, units))[:, None]
    elif name == "units all the same":
        loss, cost = np.tile(4.0 ** -rank[:1], (units, 1)), np.tile(cost[:1], (units, 1))
    least, most = int(cost.min(axis=1).sum()), int(cost.max(axis=1).sum())
    corner = int(rng.integers(0, 10))
    budget = (least, most)[corner] if corner < 2 else least + int(rng.random() * (most - least))
    return Problem(loss * 10.0 ** int(rng.integers(-12, 13)), cost, budget)


def choices(problem: Problem) -> int:
    """Number of choices there are."""
    return problem.options**problem.units


def least_loss(problem: Problem) -> float:
    """Try every choice; Python integers for the costs, correctly rounded sums for the losses."""
    best = math.inf
    for choice in itertools.product(range(problem.options), repeat=problem.units):
        pairs = list(enumerate(choice))
        if sum(int(problem.cost[pair]) for pair in pairs) <= problem.budget:
            best = min(best, math.fsum(problem.loss[pair] for pair in pairs))
    return best
