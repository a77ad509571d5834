"""What an answer carries: the choice, what it costs, and what is proven about it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Certificate", "Solution", "Status"]


class Status(enum.StrEnum):
    """How a solution stands; the value is the message shown to people."""

    OPTIMAL = "proven optimal"
    STATE_LIMIT = "within the budget; the search met its memory limit, so the gap is what is proven"
    MEASURED = "kept because it measured better than the solved plan; the gap is what is proven"
    TIME_LIMIT = "within the budget; the search met its time limit, so the gap is what is proven"


class Certificate(BaseModel):
    """What is proven about a choice: ``bound <= least possible loss within the budget <= objective``.

    Parameters
    ----------
    objective : float
        Total loss of the choice.
    bound : float
        Proven lower bound of the loss of every choice within the budget. For a proven optimum it lies below
        `objective` by the rounding of the float64 sums that the proof rests on, never by more.
    gap : float
        ``objective - bound``, at least 0.
    relative_gap : float
        `gap` over the sum of the magnitudes of the chosen losses, which is `objective` where none is
        negative; 0 where the gap is 0.
    status : Status
        Whether the search was complete, and if not, what stopped it.
    solver : str
        The algorithm that found the choice.
    shadow_price : float
        Loss that one more bit would save at this budget, from the linear relaxation (loss per bit, >= 0).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    objective: float
    bound: float
    gap: float = Field(ge=0)
    relative_gap: float = Field(ge=0)
    status: Status
    solver: str
    shadow_price: float = Field(ge=0)


@dataclass(frozen=True, eq=False)
class Solution:
    """A choice within the budget and what is proven about it.

    Parameters
    ----------
    choice : int array (units,)
        Index of the option of each unit.
    loss : float
        Total loss.
    cost : int
        Total bits, at most the budget.
    certificate : Certificate
        Proven bound, gap and status.
    """

    choice: NDArray[np.intp]
    loss: float
    cost: int
    certificate: Certificate
