"""The methods by the names that people know them by."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from .adaquant import AdaQuant
from .gptq import Gptq
from .lapq import Lapq
from .learn import Learning
from .method import Method, Nearest
from .rounding import LearnedRounding
from .straight_through import StraightThrough
from .units import Granularity

__all__ = ["BlockLoss", "LearningChoices", "MethodName", "method_named"]


class BlockLoss(enum.StrEnum):
    """What learned rounding minimises at the output of a unit."""

    MSE = "mse"
    """Squared error."""
    FISHER = "fisher"
    """Squared error, every value weighted by the diagonal of the Fisher information there."""


@dataclass(frozen=True)
class LearningChoices:
    """What may be chosen of a method that learns; None stands for its own default.

    Attributes
    ----------
    iterations : int or None
        Per layer or block.
    granularity : Granularity or None
        What learns together; of ``brecq`` alone, as ``adaround`` is that of layers.
    block_loss : BlockLoss or None
        Of ``brecq`` and ``adaround``.
    drop : float or None
        Share of the inputs that are the float network's, 0 to 1, of ``brecq`` and ``adaround``.
    """

    iterations: int | None = None
    granularity: Granularity | None = None
    block_loss: BlockLoss | None = None
    drop: float | None = None

    def stated(self) -> dict[str, str | float]:
        """The choices that were made, as documents state them."""
        chosen = {name: getattr(self, name) for name in ("iterations", "granularity", "block_loss", "drop")}
        return {
            name: value if isinstance(value, (int, float)) else str(value)
            for name, value in chosen.items()
            if value is not None
        }


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
    def rounds_by_learning(self) -> bool:
        """Whether it learns which way to round, unit after unit."""
        return self in (MethodName.ADAROUND, MethodName.BRECQ)

    @property
    def has_iterations(self) -> bool:
        """Whether it learns in iterations."""
        return self in (MethodName.ADAQUANT, MethodName.ADAROUND, MethodName.BRECQ)


def method_named(
    name: MethodName,
    *,
    choices: LearningChoices | None = None,
    seed: int = 0,
    memory_bytes: int = 2**31,
) -> Method:
    """The method with its defaults.

    Parameters
    ----------
    choices : LearningChoices, optional
        Those that the method does not have are ignored.
    seed : int
        Of learned rounding; the other methods draw nothing.
    memory_bytes : int
        Bound on the activations that are kept in memory.

    Raises
    ------
    InputError
        A number of iterations or a share outside its range.
    """
    choices = choices or LearningChoices()
    iterations = choices.iterations
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
    if choices.drop is not None:
        learning = replace(learning, drop=choices.drop)
    own = Granularity.LAYER if name is MethodName.ADAROUND else choices.granularity or Granularity.BLOCK
    fisher = choices.block_loss is BlockLoss.FISHER
    return LearnedRounding(own, gptq, fisher=fisher, learning=learning, memory_bytes=memory_bytes)
