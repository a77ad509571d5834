"""The allocation problem that a profile poses, per layer or per output channel."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..allocator import Problem
from ..errors import InputError
from ..quantizer import StepUnit, channel_code_bits
from .profile import Profile, ProfileArrays

__all__ = ["channel_problem", "layer_problem", "problem_of", "uniform_options"]

Unit = Literal["layer", "channel"]


def layer_problem(profile: Profile, budget_bits: int) -> Problem:
    """One unit per layer: its scores, and the bits of its codes and steps.

    Parameters
    ----------
    budget_bits : int
        Limit on the bits of all quantized weights together.
    """
    options = profile.options
    shape = (len(profile.layers), len(options))
    loss, cost = np.zeros(shape), np.zeros(shape, np.int64)
    allowed = np.zeros(shape, np.bool_)
    for row, layer in enumerate(profile.layers):
        for score in layer.scores:
            column = options.index(score.option)
            loss[row, column], cost[row, column] = score.loss, score.size_bits
            allowed[row, column] = True
    names = tuple(layer.name for layer in profile.layers)
    return Problem(loss, cost, budget_bits, allowed, names, options)


def channel_problem(profile: Profile, arrays: ProfileArrays | None, budget_bits: int) -> Problem:
    """One unit per output channel; the cost of a channel includes the code that names its option.

    Raises
    ------
    InputError
        The profile has no channel scores, or the option set has steps per tensor.
    """
    if arrays is None:
        raise InputError(
            "the profile holds exact scores, which exist per layer only; profile with Fisher scores to "
            "choose per channel, or solve with --unit layer"
        )
    options = profile.parsed_options()
    per_tensor = [str(option) for option in options if option.unit is StepUnit.TENSOR]
    if per_tensor:
        raise InputError(
            f"options {', '.join(per_tensor)} have one step for the whole tensor and cannot be chosen per "
            "channel; profile without them, or solve with --unit layer"
        )
    code_bits = channel_code_bits(len(options))
    costs: list[NDArray[np.int64]] = []
    allowed: list[NDArray[np.bool_]] = []
    names: list[str] = []
    for layer in profile.layers:
        cost = [option.size_bits(1, layer.fan_in) + code_bits for option in options]
        fits = {score.option for score in layer.scores}
        costs.append(np.tile(np.array(cost, np.int64), (layer.channels, 1)))
        allowed.append(np.tile([text in fits for text in profile.options], (layer.channels, 1)))
        names.extend(f"{layer.name}[{channel}]" for channel in range(layer.channels))
    return Problem(
        arrays.channel_loss.numpy(),
        np.concatenate(costs),
        budget_bits,
        np.concatenate(allowed),
        tuple(names),
        profile.options,
    )


def problem_of(profile: Profile, arrays: ProfileArrays | None, unit: Unit, budget_bits: int) -> Problem:
    """The problem at the given unit of choice."""
    if unit == "layer":
        return layer_problem(profile, budget_bits)
    return channel_problem(profile, arrays, budget_bits)


def uniform_options(
    profile: Profile, arrays: ProfileArrays | None = None, unit: Unit = "layer"
) -> dict[str, tuple[int, float]]:
    """Options that every layer can take: bits of all weights, and predicted loss, when all take it.

    The prediction is the sum of the layers' scores, or of the channels' scores for unit "channel".
    """
    found: dict[str, tuple[int, float]] = {}
    for column, option in enumerate(profile.options):
        scores = [score for layer in profile.layers for score in layer.scores if score.option == option]
        if len(scores) < len(profile.layers):
            continue
        loss = sum(score.loss for score in scores)
        if unit == "channel" and arrays is not None:
            loss = float(arrays.channel_loss[:, column].sum())
        found[option] = sum(score.size_bits for score in scores), loss
    return found
