"""Which ways of choosing compete where the command is not told one."""

from __future__ import annotations

from ..quantizer import StepUnit
from ..sensitivity import Objective, Profile, ProfileArrays

__all__ = ["Rival", "rivals"]

Rival = tuple[str, Objective | None]
"""A unit of choice, and what is minimised; None: what `solve_plan` takes by itself."""


def rivals(
    profile: Profile,
    arrays: ProfileArrays | None,
    unit: str,
    objective: Objective | None = None,
    *,
    nearest: bool,
) -> list[Rival]:
    """Ways of choosing, those below the layer first.

    ``auto`` stands for channels, where there are scores for them, and layers. Below the layer interactions
    are counted where weights are rounded to `nearest`; what GPTQ and learned rounding make of them is another
    matter, so that choices with and without then compete.
    """
    units = [unit]
    if unit == "auto":
        per_tensor = any(option.unit is StepUnit.TENSOR for option in profile.parsed_options())
        units = ["layer"] if arrays is None or per_tensor else ["channel", "layer"]
    has_factors = arrays is not None and arrays.factors is not None
    both = objective is None and not nearest and has_factors
    return [
        (each, choice)
        for each in units
        for choice in ((None, Objective.ADDITIVE) if both and each != "layer" else (objective,))
    ]
