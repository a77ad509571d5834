"""From a profile and a budget to a plan."""

from __future__ import annotations

from collections.abc import Sequence

from ..allocator import (
    Certificate,
    Complexity,
    LayerPlan,
    Plan,
    Status,
    assignment_digest,
    cost_range,
    parse_budget,
    solve,
)
from ..quantizer import parse_option, stored_bits
from .feasible import Ledger, limit_bits
from .measure import tool_versions
from .problems import Unit, problem_of, uniform_options
from .profile import LayerProfile, Profile, ProfileArrays

__all__ = ["best_uniform_plan", "budget_bits", "solve_plan"]


def budget_bits(profile: Profile, budget: str) -> int:
    """Bits that a budget leaves to the quantized weights, whatever the options can reach.

    Raises
    ------
    InputError
        Not a budget.
    InfeasibleError
        What stays float takes all of it.
    """
    return parse_budget(budget).bits(profile.weight_count, profile.fixed_bits, profile.float_bits)


def solve_plan(
    profile: Profile,
    arrays: ProfileArrays | None,
    budget: str,
    unit: Unit,
    *,
    time_limit_s: float | None = None,
) -> Plan:
    """The plan of least predicted loss within the budget, with its certificate.

    Parameters
    ----------
    arrays : ProfileArrays or None
        Needed for unit "channel".
    budget : str
        See `parse_budget`.

    Raises
    ------
    InputError
        Not a budget, or a unit that the profile has no scores for.
    InfeasibleError
        No choice meets the budget; names the least and the greatest complexity.
    """
    ledger = Ledger(profile.weight_count, profile.fixed_bits, profile.float_bits)
    spread = cost_range(problem_of(profile, arrays, unit, 0))
    limit = limit_bits(budget, unit, ledger, spread.least, spread.greatest, profile.options)
    problem = problem_of(profile, arrays, unit, limit)
    solution = solve(problem, time_limit_s=time_limit_s)
    chosen = [profile.options[index] for index in solution.choice]
    if unit == "layer":
        assigned = [[option] * layer.channels for option, layer in zip(chosen, profile.layers, strict=True)]
    else:
        assigned, start = [], 0
        for layer in profile.layers:
            assigned.append(chosen[start : start + layer.channels])
            start += layer.channels
    return _plan(profile, arrays, budget, unit, assigned, solution.certificate)


def best_uniform_plan(profile: Profile, plan: Plan) -> Plan | None:
    """The plan that gives every layer one option, that of least predicted loss within the same budget.

    None where no single option fits.
    """
    limit = budget_bits(profile, plan.budget)
    fitting = {
        option: loss for option, (size_bits, loss) in uniform_options(profile).items() if size_bits <= limit
    }
    if not fitting:
        return None
    option = min(fitting, key=lambda text: fitting[text])
    certificate = None
    if plan.certificate is not None and plan.unit == "layer":
        objective, bound = fitting[option], plan.certificate.bound
        gap = max(0.0, objective - bound)
        certificate = Certificate(
            objective=objective,
            bound=bound,
            gap=gap,
            relative_gap=gap / max(abs(objective), abs(bound)) if gap else 0.0,
            status=Status.MEASURED,
            solver="measurement",
            shadow_price=plan.certificate.shadow_price,
        )
    assigned = [[option] * layer.channels for layer in profile.layers]
    return _plan(profile, None, plan.budget, "layer", assigned, certificate)


def _layer_bits(profile: Profile, layer: LayerProfile, options: Sequence[str]) -> int:
    """Stored bits of a layer whose channels have these options."""
    return stored_bits([parse_option(text) for text in options], layer.fan_in, len(profile.options))


def _predicted_loss(
    profile: Profile, arrays: ProfileArrays | None, unit: Unit, row: int, options: Sequence[str]
) -> float:
    """Loss that the scores predict for a layer: its own score, or the sum of its channels' scores."""
    layer = profile.layers[row]
    if unit == "layer" or arrays is None:
        return next(score.loss for score in layer.scores if score.option == options[0])
    start = sum(before.channels for before in profile.layers[:row])
    columns = [profile.options.index(option) for option in options]
    channels = arrays.channel_loss[start : start + layer.channels]
    return float(channels[range(layer.channels), columns].sum())


def _plan(
    profile: Profile,
    arrays: ProfileArrays | None,
    budget: str,
    unit: Unit,
    assigned: Sequence[Sequence[str]],
    certificate: Certificate | None,
) -> Plan:
    layers = []
    for row, (layer, options) in enumerate(zip(profile.layers, assigned, strict=True)):
        size_bits = _layer_bits(profile, layer, options)
        layers.append(
            LayerPlan.from_channels(
                layer.name,
                layer.shape,
                options,
                size_bits=size_bits,
                predicted_loss=_predicted_loss(profile, arrays, unit, row, options),
                mean_bits=size_bits / (layer.channels * layer.fan_in),
            )
        )
    weights = sum(layer.size_bits for layer in layers)
    return Plan(
        unit=unit,
        budget=budget,
        complexity=Complexity(
            size_bits=weights + profile.fixed_bits,
            average_bits=weights / profile.weight_count,
            fixed_bits=profile.fixed_bits,
            float_bits=profile.float_bits,
            weight_count=profile.weight_count,
        ),
        certificate=certificate,
        predicted_loss=sum(layer.predicted_loss for layer in layers),
        profile=profile.fingerprint.text(),
        options=profile.options,
        quantizer=profile.quantizer,
        assignment=assignment_digest(layers),
        versions=tool_versions(),
        layers=tuple(layers),
    )
