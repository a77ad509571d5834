"""The mathematics of the budget: problem, frontier, proven solution, budget grammar, plan and its charts."""

from .budget import Budget, BudgetKind, parse_budget
from .layer_plan import LayerPlan
from .plan import (
    Complexity,
    Guard,
    Measured,
    Plan,
    assignment_digest,
    check_layers,
    read_plan,
    write_plan,
)
from .problem import Problem, cost_range
from .solution import Certificate, Solution, Status
from .solve import solve

__all__ = [
    "Budget",
    "BudgetKind",
    "Certificate",
    "Complexity",
    "Guard",
    "LayerPlan",
    "Measured",
    "Plan",
    "Problem",
    "Solution",
    "Status",
    "assignment_digest",
    "check_layers",
    "cost_range",
    "parse_budget",
    "read_plan",
    "solve",
    "write_plan",
]
