"""What an answer carries: the choice, what it costs, and what is proven about it."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Certificate", "MultiSolution", "Solution", "Status"]


class Status(enum.StrEnum):
    """How a solution stands; the value is the message shown to people."""

    OPTIMAL = "proven optimal"
    STATE_LIMIT = "within the budget; the search met its memory limit, so the gap is what is proven"
    MEASURED = "kept because it measured better than the solved plan; the gap is what is proven"
    TIME_LIMIT = "within the budget; the search met its time limit, so the gap is what is proven"
    LOCAL_SEARCH = "within the budget, found by local search; the gap is what is proven"
    SEARCH_LIMIT = "within the budget; the search ended before a proof, so the gap is what is proven"


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
    shadow_prices : dict of str to float
        Budget -> loss that one more unit of that budget would save, from the linear relaxation (loss per
        bit for ``size``, >= 0; 0 where the budget does not bind).
    objective_form : "additive", "block" or "joint"
        Which loss is meant by `objective` and `bound`: the sum of the units' own losses, or the joint one
        that holds the interactions between units too.
    shrinkage : float, optional
        Of a plan's joint loss: the part of the interactions between units that it counts, 0 to 1; with 0 it
        is the sum of the units' own losses. Losses of two shrinkages are not comparable.
    problem : str, optional
        Digest of what the plan that it certifies states besides its choice, by which an edit is noticed; see
        `Plan.problem`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    objective: float
    bound: float
    gap: float = Field(ge=0)
    relative_gap: float = Field(ge=0)
    status: Status
    solver: str
    shadow_prices: dict[str, Annotated[float, Field(ge=0)]]
    objective_form: Literal["additive", "block", "joint"] = "additive"
    shrinkage: float | None = Field(default=None, ge=0, le=1)
    problem: str | None = None

    def of_problem(self, problem: str) -> Certificate:
        """The same, about this problem."""
        return self.model_copy(update={"problem": problem})

    @classmethod
    def from_gap(
        cls,
        losses: NDArray[np.float64],
        gap: float,
        status: Status,
        solver: str,
        shadow_prices: dict[str, float],
    ) -> Certificate:
        """Certify a choice of which the loss is at most `gap` above the least possible.

        Parameters
        ----------
        losses : float64 array (units,)
            Losses of the chosen options.
        gap : float
            Proven, rounding included.
        status, solver, shadow_prices
            As in the certificate.
        """
        objective = math.fsum(losses)
        # Rounded down, so that the bound stays one after its own rounding.
        bound = math.nextafter(objective - gap, -math.inf) if gap else objective
        gap = objective - bound
        return cls(
            objective=objective,
            bound=bound,
            gap=gap,
            relative_gap=gap / (math.fsum(np.abs(losses)) or gap or 1.0),
            status=status,
            solver=solver,
            shadow_prices=shadow_prices,
        )


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


@dataclass(frozen=True, eq=False)
class MultiSolution:
    """A choice within several budgets and what is proven about it.

    Parameters
    ----------
    choice : int array (units,)
        Index of the option of each unit.
    loss : float
        Total loss.
    costs : tuple of int
        Total cost in each measure, each at most its budget.
    certificate : Certificate
        Proven bound, gap and status, and a shadow price for each budget.
    """

    choice: NDArray[np.intp]
    loss: float
    costs: tuple[int, ...]
    certificate: Certificate
