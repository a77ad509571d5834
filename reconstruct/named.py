"""The methods by the names that people know them by."""

from __future__ import annotations

import enum
from dataclasses import replace

from .gptq import Gptq
from .learn import Learning
from .method import Method, Nearest
from .rounding import LearnedRounding
from .units import Granularity

__all__ = ["MethodName", "method_named"]


class MethodName(enum.StrEnum):
    """How the integer weights of a plan are found; from the cheapest to the dearest."""

    NEAREST = "nearest"
    GPTQ = "gptq"
    ADAROUND = "adaround"
    BRECQ = "brecq"

    @property
    def is_learned(self) -> bool:
        """Whether it takes thousands of passes, and not a few."""
        return self in (MethodName.ADAROUND, MethodName.BRECQ)


def method_named(
    name: MethodName, *, iterations: int | None = None, seed: int = 0, memory_bytes: int = 2**31
) -> Method:
    """The method with its defaults.

    Parameters
    ----------
    iterations : int, optional
        Of learned rounding, per unit.
    seed : int
        Of learned rounding.
    memory_bytes : int
        Bound on the activations that are kept in memory.
    """
    if name is MethodName.NEAREST:
        return Nearest()
    gptq = Gptq(memory_bytes=memory_bytes)
    if name is MethodName.GPTQ:
        return gptq
    learning = Learning(seed=seed)
    if iterations is not None:
        learning = replace(learning, iterations=iterations)
    granularity = Granularity.LAYER if name is MethodName.ADAROUND else Granularity.BLOCK
    return LearnedRounding(granularity, gptq, learning=learning, memory_bytes=memory_bytes)
