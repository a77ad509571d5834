"""How sure a plan is of its options: had other samples been drawn, would they still be the best?

Every unit of a solved plan holds the option of least ``loss + price * cost`` at the shadow prices of the
budgets, but for what fitting whole options into them takes. The losses are means over samples. Weighting the
samples anew, by the Bayesian bootstrap (Rubin, "The Bayesian bootstrap", Annals of Statistics 9, 1981), gives
losses that could as well have been measured, and each time the comparison is made again.

- All losses of one weighting come from the same samples. What they have in common, because a few samples move
  under any change, raises the price as it raises the losses and decides nothing: the prices are scaled, in
  every weighting, until the options of least ``loss + price * cost`` cost what the plan costs.
- For layers the projections hold the losses of every sample. For channels, tiles and strips of inputs only
  standard errors are kept: their losses are moved by as many standard errors as the same option's loss for
  the whole layer moves. To take the errors of a unit's options as independent would double the expected
  regret, for they are measured on the same samples.
- In a plan for the joint objective every option also has its interactions with the other units' choices. They
  are taken as known but for what all losses share, and scaled with the prices.
- What a unit lacks of the least ``loss + price * cost`` by the profile's own losses is the budget's doing and
  no noise: it is forgiven.

From few samples the spread itself is known badly and comes out too small: from 8 samples of a small network
the expected regret was about half of what other samples then showed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..allocator import Plan, Status
from .joint import unit_factors
from .profile import Profile, ProfileArrays
from .task import Task, task_of

__all__ = [
    "Confidence",
    "doubtful_layers",
    "interactions",
    "losses_drawn_again",
    "unit_confidence",
    "weightings",
    "with_confidence",
]

NOISE_SHARE = 0.15
"""Expected regret, of a layer's loss, from which on its choice is called noise."""
MOST_WEIGHTINGS, LEAST_WEIGHTINGS = 256, 32
MOST_LOSSES = 2**24
UNITS_FOR_PRICES = 2**12
"""Of more units a part tells the prices well enough."""
BRACKET = 4.0
BISECTIONS = 12

Floats = NDArray[np.float64]


class Confidence(NamedTuple):
    """How sure the choice of every unit is.

    Attributes
    ----------
    probability : float64 array (units,)
        That the chosen option is the best.
    regret : float64 array (units,)
        Loss that the best option is expected to save.
    """

    probability: Floats
    regret: Floats


def with_confidence(profile: Profile, arrays: ProfileArrays | None, plan: Plan) -> Plan:
    """The plan with the confidence and the expected regret of every layer.

    With weightings b of the samples and r_b(u, o) = loss_b(u, o) + price_b * cost(u, o), from which what is
    forgiven is taken for the chosen option,

        confidence(u) = share of b with r_b(u, chosen) = min_o r_b(u, o)
        regret(u) = mean_b ( r_b(u, chosen) - min_o r_b(u, o) ) / (price_b / price)

    A layer has the mean confidence of its strips and their regrets' sum; a tied group's regret is shared out
    by weights. See the module for where the losses come from.

    Parameters
    ----------
    profile, arrays
        What the plan was solved from.
    plan : Plan
        Solved from scores: what was edited or kept by measurement comes back as it is. So do plans of exact
        scores, which hold no sample's loss.
    """
    certificate = plan.certificate
    if arrays is None or certificate is None or certificate.status is Status.MEASURED:
        return plan
    task = task_of(profile, arrays, plan)
    found = unit_confidence(task, plan, losses_drawn_again(task, arrays))
    posed = task.posed
    counts = np.diff(posed.starts)
    strip_weights = np.repeat([layer.channels * layer.fan_in for layer in profile.layers] / counts, counts)
    unit_weights = np.bincount(posed.member, strip_weights)
    regret = (found.regret / unit_weights)[posed.member] * strip_weights
    sums = [
        np.add.reduceat(values, posed.starts[:-1]) for values in (found.probability[posed.member], regret)
    ]
    return plan.model_copy(
        update={
            "layers": tuple(
                layer.model_copy(
                    update={"confidence": float(sums[0][row] / counts[row]), "regret": float(sums[1][row])}
                )
                for row, layer in enumerate(plan.layers)
            )
        }
    )


def doubtful_layers(plan: Plan) -> tuple[str, ...]:
    """Names of the layers whose choice is noise: the expected regret is material.

    That is more than 15% of the layer's predicted loss, or where it has less than that, of the mean layer's.
    A low confidence alone says little: between two options that are as good, every choice is a toss.
    """
    losses = [layer.predicted_loss or 0.0 for layer in plan.layers]
    mean = sum(losses) / len(losses)
    return tuple(
        layer.name
        for layer, loss in zip(plan.layers, losses, strict=True)
        if layer.regret is not None and layer.regret > NOISE_SHARE * max(loss, mean)
    )


def losses_drawn_again(task: Task, arrays: ProfileArrays) -> Floats:
    """Losses of every unit as other samples could have given them, (weightings, units, options).

    ``sum_n w[b, n] loss[n, u, o]`` with the `weightings` w where every sample's loss is known, else
    ``loss + standard error * z[b, l, o]`` with z the deviation of the unit's layer in its standard errors.
    """
    samples, problem, posed = task.profile.samples, task.problem, task.posed
    loss = arrays.projections.double().square().sum(1).numpy() / 2
    count = min(MOST_WEIGHTINGS, max(LEAST_WEIGHTINGS, MOST_LOSSES // problem.loss.size))
    weights = weightings(len(loss), samples, count, task.profile.seed)
    mean = loss.sum(0) / samples
    moved: Floats = np.tensordot(weights, loss, axes=1) - mean
    variance = np.maximum(np.square(loss).sum(0) / samples - np.square(mean), 0) / max(1, samples - 1)
    error = np.sqrt(variance)
    deviations = np.divide(moved, error, out=np.zeros_like(moved), where=error > 0)
    drawn = np.repeat(problem.loss[None], count, axis=0)
    strip_errors = arrays.channel_error.numpy()
    for row, whole in enumerate(posed.whole):
        place = slice(posed.starts[row], posed.starts[row + 1])
        units, of = np.unique(posed.member[place], return_inverse=True)
        if whole:
            drawn[:, units] += moved[:, row, None]
            continue
        # Strips that share an option were measured on the same samples, and rise and fall together.
        errors = np.zeros((len(units), problem.options))
        np.add.at(errors, of, strip_errors[place])
        drawn[:, units] += errors * deviations[:, row, None]
    floor: Floats = np.minimum(problem.loss, 0)
    return np.maximum(drawn, floor, out=drawn)


def weightings(scored: int, samples: int, count: int, seed: int) -> Floats:
    """Weights of the samples, (count, scored): those of a Dirichlet distribution over all `samples`.

    Samples that are not scored have a loss of 0, and only take their share of the weight.
    """
    generator = np.random.default_rng(seed)
    drawn = generator.exponential(size=(count, scored))
    others = generator.gamma(samples - scored, size=count) if samples > scored else np.zeros(count)
    weights: Floats = drawn / (drawn.sum(1) + others)[:, None]
    return weights


def unit_confidence(task: Task, plan: Plan, drawn: Floats) -> Confidence:
    """Compare the options of every unit in losses drawn again; see `with_confidence`."""
    problem = task.problem
    assert plan.certificate is not None
    scales = problem.scales or (1,) * len(problem.budgets)
    prices = [
        # Where memory of activations is all that is limited, weights cost nothing.
        plan.certificate.shadow_prices.get(name, 0.0) / scale
        for name, scale in zip(problem.budget_names, scales, strict=True)
    ]
    cost: Floats = np.tensordot(np.array(prices), problem.costs.astype(np.float64), axes=1)
    units, choice = np.arange(problem.units), task.choice_of(plan)
    besides = cost.copy()
    if plan.certificate.shrinkage is not None:
        besides += interactions(task, plan, choice)
    loss = problem.loss
    if problem.allowed is not None:
        loss, drawn = (np.where(problem.allowed, values, np.inf) for values in (loss, drawn))
    reduced = loss + besides
    besides[units, choice] -= reduced[units, choice] - reduced.min(1)
    some = slice(None, None, 1 + problem.units // UNITS_FOR_PRICES)
    factor = _price_factors(loss[some], drawn[:, some], cost[some], besides[some], choice[some])[:, None]
    reduced = drawn + factor[:, :, None] * besides
    chosen = reduced[:, units, choice]
    short = chosen - reduced.min(2)
    # What forgiveness makes equal is equal but for rounding.
    best = short <= 1e-9 * np.abs(chosen)
    return Confidence(best.mean(0), (short / factor).mean(0))


def interactions(task: Task, plan: Plan, choice: NDArray[np.intp]) -> Floats:
    """What every option adds to the joint loss beside its own, all other units being as chosen.

    ``s < sum_w v[w, o_w] - v[u, o_u], v[u, o] >`` with the shrinkage s of the plan's objective.
    """
    assert plan.certificate is not None
    assert plan.certificate.shrinkage is not None
    factors, units = unit_factors(task), np.arange(len(choice))
    picked = factors[units, choice]
    residual = picked.sum(0)
    products, itself = factors @ residual, (factors @ picked[:, :, None])[:, :, 0]
    added: Floats = plan.certificate.shrinkage * (products - itself).astype(np.float64)
    return added


def _price_factors(
    loss: Floats, drawn: Floats, cost: Floats, besides: Floats, choice: NDArray[np.intp]
) -> Floats:
    """By how much prices rise in every weighting so that the best options cost what the plan costs.

    Where they do so in a range of prices, which few units leave wide, its middle is taken.
    """
    units = np.arange(len(loss))
    wanted = cost[units, choice].sum()
    before, after = loss[units, choice].sum(), drawn[:, units, choice].sum(1)
    # All losses twice as large, all prices twice as high: near there the factor must be.
    guess = np.log(np.maximum(after / before, 1e-9)) if before > 0 else np.zeros(len(drawn))
    ends = []
    for too_dear in (np.greater, np.greater_equal):
        low, high = guess - np.log(BRACKET), guess + np.log(BRACKET)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            best = (drawn + np.exp(middle)[:, None, None] * besides).argmin(2)
            spent = cost[units, best].sum(1)
            # Sums of the same numbers in the same order, so that equal costs compare as equal.
            over = too_dear(spent, wanted)
            low, high = np.where(over, middle, low), np.where(over, high, middle)
        ends.append(high)
    factors: Floats = np.exp((ends[0] + ends[1]) / 2)
    return factors
