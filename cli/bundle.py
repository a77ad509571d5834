"""A preset on the command line: defaults that options override, and its exceptions for layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..allocator import BudgetKind, Constraints, Plan, match_layers, parse_budget
from ..errors import InputError
from ..network import Network, find_sites
from ..quantizer import (
    Option,
    activation_part,
    parse_activation,
    parse_option,
    parse_options,
    weight_part,
)
from ..reconstruct import PRESETS, PresetName, multipoint_plan
from .inputs import Inputs
from .limits import Limits
from .scoring import Scoring

__all__ = ["check_bundle", "defaults_of", "points_plan", "with_ends"]

# Parameters of the command about scores, what is scored, and choices by scores.
_BY_SCORES = frozenset(
    {
        "after",
        "attention",
        "draws",
        "forbid",
        "labels",
        "layer_options",
        "objective",
        "p",
        "percentile",
        "points",
        "ranges",
        "refine",
        "rounding",
        "scores",
        "search",
        "table",
        "tie",
        "time_limit",
        "unit",
    }
)


def defaults_of(name: PresetName) -> dict[str, object]:
    """Values of the command's parameters, by parameter, in the place of their defaults."""
    preset = PRESETS[name]
    values = {
        "options": preset.options,
        "unit": preset.unit,
        "objective": preset.objective,
        "after": preset.after,
        "method": preset.method,
        "correct": [str(correction) for correction in preset.corrections],
    }
    return {parameter: value for parameter, value in values.items() if value is not None}


def check_bundle(name: PresetName, limits: Limits, scoring: Scoring, given: Mapping[str, object]) -> None:
    """Refuse what a preset cannot do.

    Parameters
    ----------
    given : mapping of str to object
        Parameters that were written on the command line, with their values.

    Raises
    ------
    InputError
        For points by output error: activations in low bits, and rules, budgets and all else that takes
        scores.
    """
    if not PRESETS[name].by_output_error:
        return
    rules, own = limits.constraints, defaults_of(name)
    sizes = [parse_budget(text).kind for text in limits.budgets]
    unused = [
        f"--{parameter.replace('_', '-')}"
        for parameter, value in given.items()
        if parameter in _BY_SCORES and value != own.get(parameter)
    ]
    others = len(sizes) > 1 or sizes[0] is BudgetKind.TOTAL or limits.tables
    if unused or others or rules.tie or rules.forbid or rules.options:
        raise InputError(
            f"--preset {name} chooses by output errors and not by scores: it keeps one budget of the size, "
            f"--pin and --exclude; leave out {', '.join(unused) or 'what else limits the plan'}"
        )
    if scoring.activations is not None:
        raise InputError(
            f"--preset {name} chooses for weights alone, and --options {given.get('options')} names bits of "
            "activations; leave these out"
        )
    _base(scoring)


def with_ends(name: PresetName, limits: Limits, network: Network, scoring: Scoring) -> tuple[Limits, Scoring]:
    """The limits with the preset's pins of the first and the last layer, and of what these read.

    A layer that a rule of the user's names is left to that rule. Options of the pins that the option set does
    not have are added to it for these two layers, and forbidden to the others, which have what was asked for.
    """
    rules, layers = limits.constraints, [layer.name for layer in network.layers]
    patterns = {**rules.pin, **rules.forbid, **rules.options}
    named = {row for pattern in patterns for row in match_layers(pattern, layers, f"rule for {pattern}")}
    pins = {
        layer: option
        for layer, option in PRESETS[name].pins(layers, activations=scoring.activations is not None).items()
        if layers.index(layer) not in named
    }
    rules = rules.merged(Constraints(pin=pins))
    if pins and not PRESETS[name].by_output_error:
        rules, scoring = _with_options(next(iter(pins.values())), rules, network, scoring)
    return replace(limits, constraints=rules), scoring


def _with_options(
    option: str, rules: Constraints, network: Network, scoring: Scoring
) -> tuple[Constraints, Scoring]:
    """The option of the first and the last layer in the option set, and no other layer's."""
    layers = [layer.name for layer in network.layers]
    ends = {layers[0], layers[-1]}
    forbidden: dict[str, list[str]] = {layer: [] for layer in layers if layer not in ends}
    weight, settings = parse_option(weight_part(option)), scoring.activations
    if weight not in scoring.options:
        every = parse_options(",".join(map(str, (*scoring.options, weight))))
        scoring = replace(scoring, options=every)
        for options in forbidden.values():
            options.append(str(weight))
    entering = activation_part(option)
    sites = find_sites(network, attention=settings.attention) if settings is not None else ()
    reading = [{reader.layer for reader in site.readers} for site in sites]
    # No rule reaches a value that only products read: it would have the added option too.
    if settings is not None and all(reading) and parse_activation(entering) not in settings.options:
        widths = tuple(sorted((*settings.options, parse_activation(entering))))
        scoring = replace(scoring, activations=replace(settings, options=widths))
        # One quantizer serves all that read a value.
        shared = set().union(*(readers for readers in reading if readers & ends))
        for layer in forbidden.keys() - shared:
            forbidden[layer].append(entering)
    forbid = {layer: tuple(options) for layer, options in forbidden.items() if options}
    return rules.merged(Constraints(forbid=forbid)), scoring


def points_plan(inputs: Inputs, limits: Limits, scoring: Scoring) -> Plan:
    """The plan of a preset that chooses points by output error.

    Raises
    ------
    InputError, InfeasibleError
        As `multipoint_plan`.
    """
    (base, most), constraints = _base(scoring), limits.constraints
    names = [layer.name for layer in inputs.network.layers]
    fixed = {
        names[row]: parse_option(option)
        for pattern, option in constraints.pin.items()
        for row in match_layers(pattern, names, f"pin {pattern}={option}")
    }
    memory = scoring.settings.memory_bytes
    plan = multipoint_plan(
        inputs.network, inputs.calibration, base, most, limits.budgets[0], fixed=fixed, memory_bytes=memory
    )
    kept = constraints.model_copy(update={"exclude": inputs.network.excluded})
    return plan.model_copy(update={"constraints": None if kept == Constraints() else kept})


def _base(scoring: Scoring) -> tuple[Option, int]:
    """The base and the most points of an option set such as ``w4x1..4``."""
    options = scoring.options
    base = options[0]
    expected = [type(base)(base.bits, count + 1, base.unit, base.group) for count in range(len(options))]
    if base.points != 1 or len(options) < 2 or list(options) != expected:
        raise InputError(
            f"--preset multipoint adds points of one kind, and --options has {', '.join(map(str, options))}; "
            "give a width with its points, such as w4x1..4"
        )
    return base, len(options)
