"""What may be written for the arguments that choose, where no other room has the words."""

from __future__ import annotations

import enum

from ..sensitivity import Objective

__all__ = ["AfterChoice", "AfterOrAutoChoice", "MethodChoice", "ObjectiveChoice", "ScoresChoice"]


class ObjectiveChoice(enum.StrEnum):
    """Which loss a plan minimises."""

    AUTO = "auto"
    ADDITIVE = "additive"
    BLOCK = "block"
    JOINT = "joint"

    @property
    def counts_interactions(self) -> bool:
        """Whether products between units are looked at, which Fisher scores alone have."""
        return self in (ObjectiveChoice.BLOCK, ObjectiveChoice.JOINT)

    def objective(self) -> Objective | None:
        """What the solver is told; None where it shall choose."""
        return None if self is ObjectiveChoice.AUTO else Objective(self.value)


class MethodChoice(enum.StrEnum):
    """How the integer weights are found."""

    AUTO = "auto"
    NEAREST = "nearest"
    GPTQ = "gptq"
    ADAQUANT = "adaquant"
    LAPQ = "lapq"
    ADAROUND = "adaround"
    BRECQ = "brecq"

    def scores_after(self, *, compared: bool) -> str:
        """Which scores are taken where none are asked for: those whose order of plans holds after the method.

        For methods that go on from GPTQ that is the order of scores after it, see results/dial.md,
        activations.md and score_ranking.md. ``auto`` may come to either kind of method: where plans are
        compared, those of both kinds of scores are, and else all are finalized by GPTQ.
        """
        if self in (MethodChoice.NEAREST, MethodChoice.LAPQ):
            return "nearest"
        return "auto" if self is MethodChoice.AUTO and compared else "gptq"


class AfterChoice(enum.StrEnum):
    """What makes the options' weights that are scored."""

    NEAREST = "nearest"
    GPTQ = "gptq"
    ADAQUANT = "adaquant"
    BRECQ = "brecq"


class AfterOrAutoChoice(enum.StrEnum):
    """The same where plans are finalized, so that two kinds can compete."""

    NEAREST = "nearest"
    GPTQ = "gptq"
    ADAQUANT = "adaquant"
    BRECQ = "brecq"
    AUTO = "auto"


class ScoresChoice(enum.StrEnum):
    """How scores are measured."""

    FISHER = "fisher"
    EXACT = "exact"
