"""A value of the network in low bits: what the tensors of a changed network say of it, and the arithmetic.

A changed network is a mapping of tensors by name. An entry of the name `activation_key(value)` quantizes that
value where it is computed, so that all its readers get the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError

__all__ = [
    "LEAST_STEP",
    "activation_entries",
    "activation_key",
    "check_activation",
    "dynamic_activation",
    "is_activation_key",
    "quantize_activation",
    "static_activation",
]

# No tensor has a name that begins so.
_PREFIX = "activation://"
_MOST_LEVELS = 255
# A token without any range keeps its value, zero.
LEAST_STEP = 1e-30


def activation_key(value: str) -> str:
    """The name under which the tensors of a changed network quantize a value, a node or input by name."""
    return f"{_PREFIX}{value}"


def is_activation_key(name: str) -> bool:
    """Whether the name of a changed network's tensor means a value and not a stored tensor."""
    return name.startswith(_PREFIX)


def activation_entries(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries that quantize values, by the name of the value."""
    return {name.removeprefix(_PREFIX): tensors[name] for name in tensors if is_activation_key(name)}


def static_activation(step: float, zero_point: int, levels: int) -> Tensor:
    """The entry of one step and zero point for the whole tensor, with codes from 0 to `levels`."""
    return torch.tensor([step, zero_point, levels], dtype=torch.float32)


def dynamic_activation(levels: int) -> Tensor:
    """The entry of a range that every token (vector along the last axis) finds from its own numbers."""
    return torch.tensor([levels], dtype=torch.float32)


def check_activation(value: str, entry: Tensor) -> None:
    """Refuse an entry that says no quantizer.

    Raises
    ------
    InputError
        Another shape than `static_activation` and `dynamic_activation` give, or a step, zero point or number
        of levels outside its range; names the value.
    """
    given = entry.detach().flatten().tolist()
    sound = entry.ndim == 1 and len(given) in (1, 3) and given[-1] in range(1, _MOST_LEVELS + 1)
    if sound and len(given) == 3:
        sound = 0 < given[0] < float("inf") and 0 <= given[1] <= given[2] and given[1] == int(given[1])
    if not sound:
        raise InputError(
            f"value '{value}' has the quantizer {given}; give [step above 0, zero point from 0 to levels, "
            f"levels from 1 to {_MOST_LEVELS}], or [levels] for a range of every token's own"
        )


def quantize_activation(x: Tensor, entry: Tensor) -> Tensor:
    """A value in low bits, as floats: ``(clip(round(x / step) + zero, 0, levels) - zero) * step``.

    With one range for the tensor, the derivative by x is 1 inside the range and 0 outside (straight through),
    and by the step ``code - zero - x / step`` inside and ``code - zero`` outside, as if rounding added a
    constant (LSQ). With ranges of the tokens' own, from the least to the greatest number and with zero in it,
    the derivative by x is 1.

    Parameters
    ----------
    x : Tensor, shape (..., features)
    entry : Tensor, shape (3,) or (1,)
        See `static_activation` and `dynamic_activation`.

    References
    ----------
    Esser et al., "Learned step size quantization", ICLR 2020.
    """
    if len(entry) == 1:
        return x + (_by_token(x, entry.to(x.device)[0]) - x).detach()
    if not (torch.is_grad_enabled() and (x.requires_grad or entry.requires_grad)):
        step, point, levels = entry.tolist()
        # The reciprocal in single precision, and numbers in place of tensors: so does the explicit program.
        codes = (x * float(entry[0].reciprocal())).round() + int(point)
        stored: Tensor = (codes.clamp_(0, int(levels)) - int(point)) * step
        return stored
    entry = entry.to(x.device)
    steps, zero, most = entry[0].to(x.dtype), entry[1].detach(), entry[2].detach()
    scaled = x / steps
    with torch.no_grad():
        codes = _codes(x, steps, zero, most) - zero
        inside = (scaled + zero >= 0) & (scaled + zero <= most)
    # Inside, rounding adds a constant to x / step; outside, the code is the constant.
    through = torch.where(inside, scaled + (codes - scaled).detach(), codes)
    return through * steps


def token_ranges(x: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Step and zero point of every token, shape (..., 1)."""
    low = x.amin(-1, keepdim=True).clamp_max(0)
    high = x.amax(-1, keepdim=True).clamp_min(0)
    step = ((high - low) / levels).clamp_min(LEAST_STEP)
    return step, (-low / step).round()


def _by_token(x: Tensor, levels: Tensor) -> Tensor:
    # The least step and its reciprocal are no numbers of float16.
    wide = x.float()
    step, zero = token_ranges(wide, levels)
    return ((_codes(wide, step, zero, levels) - zero) * step).to(x.dtype)


def _codes(x: Tensor, step: Tensor, zero: Tensor, levels: Tensor) -> Tensor:
    return ((x * step.reciprocal()).round() + zero).clamp_(zero.new_zeros(()), levels)


def quantized(values: dict[str, Any], name: str, entries: Mapping[str, Tensor]) -> None:
    """Quantize one of the values in place where there is an entry for it."""
    entry = entries.get(name)
    if entry is not None:
        values[name] = quantize_activation(values[name], entry)
