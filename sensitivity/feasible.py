"""Whether a budget can be met at all: sizes need no scores, so this is known before anything is measured."""

from __future__ import annotations

from collections.abc import Sequence

from ..allocator import parse_budget
from ..errors import InfeasibleError
from ..network import Network
from ..quantizer import Option, channel_code_bits
from .candidates import layer_options
from .problems import Unit

__all__ = ["check_feasible"]


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
        Not a budget, or a layer that no option fits.
    InfeasibleError
        Below the least size; names the least and the greatest.
    """
    code_bits = channel_code_bits(len(options)) if unit == "channel" else 0
    least = greatest = weight_count = 0
    for layer in network.layers:
        fitting = [options[index] for index in layer_options(layer, options)]
        sizes = [option.size_bits(layer.channels, layer.fan_in) for option in fitting]
        least += min(sizes) + code_bits * layer.channels
        greatest += max(sizes) + code_bits * layer.channels
        weight_count += layer.channels * layer.fan_in
    quantized = {layer.weight for layer in network.layers}
    weights_float_bits = sum(
        8 * tensor.numel() * tensor.element_size()
        for name, tensor in network.tensors.items()
        if name in quantized
    )
    fixed_bits = network.float_bits - weights_float_bits
    limit = parse_budget(budget).bits(weight_count, fixed_bits, network.float_bits)
    if limit >= least:
        return

    def described(weight_bits: int) -> str:
        size_bits = weight_bits + fixed_bits
        return (
            f"{weight_bits / weight_count:.3f}b ({size_bits / 8e6:.3g}MB, "
            f"{100 * size_bits / network.float_bits:.2f}%)"
        )

    raise InfeasibleError(
        f"budget {budget} is below what the options {', '.join(map(str, options))} can reach per {unit}: "
        f"from {described(least)} to {described(greatest)}. Raise the budget or add smaller options"
    )
