"""Whether a budget can be met at all: sizes need no scores, so it is known before anything is measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..allocator import parse_budget
from ..errors import InfeasibleError, InputError
from ..network import Network
from ..quantizer import Option, StepUnit, channel_code_bits
from .candidates import layer_options
from .problems import Unit

__all__ = ["Ledger", "check_feasible", "ledger_of", "limit_bits"]


class Ledger(NamedTuple):
    """What a budget is counted against.

    Parameters
    ----------
    weight_count : int
        Quantized weights.
    fixed_bits : int
        Bits of every other tensor that ships with the network.
    float_bits : int
        Bits of the whole float network.
    """

    weight_count: int
    fixed_bits: int
    float_bits: int


def ledger_of(network: Network) -> Ledger:
    """Count a network's weights, and what is stored beside them."""
    quantized = {layer.weight for layer in network.layers}
    fixed_bits = sum(
        8 * tensor.numel() * tensor.element_size()
        for name, tensor in network.tensors.items()
        if name not in quantized
    )
    weight_count = sum(layer.channels * layer.fan_in for layer in network.layers)
    return Ledger(weight_count, fixed_bits, network.float_bits)


def check_feasible(network: Network, options: Sequence[Option], budget: str, unit: Unit) -> None:
    """Refuse a budget below ``sum_l min_o size(l, o)``.

    Parameters
    ----------
    budget : str
        See `parse_budget`.
    unit : "layer" or "channel"
        A choice per channel also stores which channel has which option.

    Raises
    ------
    InputError
        Not a budget, a layer that no option fits, or channels that could not have options of their own.
    InfeasibleError
        Below the least size; names the least and the greatest.
    """
    per_tensor = [str(option) for option in options if option.unit is StepUnit.TENSOR]
    if unit == "channel" and per_tensor:
        raise InputError(
            f"options {', '.join(per_tensor)} have one step for the whole tensor and cannot be chosen per "
            "channel; leave them out, or choose with --unit layer"
        )
    code_bits = channel_code_bits(len(options)) if unit == "channel" else 0
    least = greatest = 0
    for layer in network.layers:
        fitting = [options[index] for index in layer_options(layer, options)]
        sizes = [option.size_bits(layer.channels, layer.fan_in) for option in fitting]
        least += min(sizes) + code_bits * layer.channels
        greatest += max(sizes) + code_bits * layer.channels
    limit_bits(budget, unit, ledger_of(network), least, greatest, [str(option) for option in options])


def limit_bits(
    budget: str, unit: Unit, ledger: Ledger, least: int, greatest: int, options: Sequence[str]
) -> int:
    """Bits that a budget leaves to the quantized weights.

    Parameters
    ----------
    least, greatest : int
        Bits of the quantized weights over all choices.
    options : sequence of str
        The option set, for the message.

    Raises
    ------
    InputError
        Not a budget.
    InfeasibleError
        Below `least`; names both ends of what can be reached.
    """
    parsed = parse_budget(budget)
    try:
        limit = parsed.bits(*ledger)
    except InfeasibleError:
        # What stays float takes all of it: worse than any shortage that the options could mend.
        limit = -1
    if limit >= least:
        return limit

    def described(weight_bits: int) -> str:
        size_bits = weight_bits + ledger.fixed_bits
        return (
            f"{weight_bits / ledger.weight_count:.3f}b ({size_bits / 8e6:.3g}MB, "
            f"{100 * size_bits / ledger.float_bits:.2f}%)"
        )

    raise InfeasibleError(
        f"budget {budget} is below what the options {', '.join(options)} can reach per {unit}: from "
        f"{described(least)} to {described(greatest)}, of which {ledger.fixed_bits / 8e6:.3g}MB are stored "
        "unquantized. Raise the budget or add smaller options"
    )
