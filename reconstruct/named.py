"""The methods by the names that people know them by."""

from __future__ import annotations

import enum
from dataclasses import replace

from .adaquant import AdaQuant
from .gptq import Gptq
from .lapq import Lapq
from .learn import Learning
from .method import Method, Nearest
from .rounding import LearnedRounding
from .straight_through import StraightThrough
from .units import Granularity

__all__ = ["MethodName", "method_named"]


class MethodName(enum.StrEnum):
    """How the integer weights of a plan are found; from the cheapest to the dearest."""

    NEAREST = "nearest"
    GPTQ = "gptq"
    ADAQUANT = "adaquant"
    LAPQ = "lapq"
    ADAROUND = "adaround"
    BRECQ = "brecq"

    @property
    def is_dear(self) -> bool:
        """Whether it takes hundreds of passes and more, and not a few."""
        return self not in (MethodName.NEAREST, MethodName.GPTQ)

    @property
    def has_iterations(self) -> bool:
        """Whether it learns in iterations."""
        return self in (MethodName.ADAQUANT, MethodName.ADAROUND, MethodName.BRECQ)


def method_named(
    name: MethodName, *, iterations: int | None = None, seed: int = 0, memory_bytes: int = 2**31
) -> Method:
    """The method with its defaults.

    Parameters
    ----------
    iterations : int, optional
        Of learning, per layer or block.
    seed : int
        Of learned rounding; the other methods draw nothing.
    memory_bytes : int
        Bound on the activations that are kept in memory.
    """
    if name is MethodName.NEAREST:
        return Nearest()
    gptq = Gptq(memory_bytes=memory_bytes)
    if name is MethodName.GPTQ:
        return gptq
    if name is MethodName.LAPQ:
        return Lapq()
    if name is MethodName.ADAQUANT:
        through = StraightThrough() if iterations is None else StraightThrough(iterations=iterations)
        return AdaQuant(start=gptq, memory_bytes=memory_bytes, learning=through)
    learning = Learning(seed=seed)
    if iterations is not None:
        learning = replace(learning, iterations=iterations)
    granularity = Granularity.LAYER if name is MethodName.ADAROUND else Granularity.BLOCK
    return LearnedRounding(granularity, gptq, learning=learning, memory_bytes=memory_bytes)
