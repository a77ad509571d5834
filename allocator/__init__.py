"""The mathematics of the budget: problem, frontier, proven solution, budget grammar, plan and its charts."""

from .budget import Budget, BudgetKind, parse_budget
from .chart import label_layers, layer_chart_width, save_figure
from .hull import Frontier, lower_frontier
from .layer_plan import LayerPlan
from .pareto import ParetoCurve, pareto_curve
from .pareto_chart import ParetoData, ParetoPoint, draw_pareto, pareto_data
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
from .plan_chart import PlanData, draw_plan, plan_data
from .problem import Problem, cost_range
from .solution import Certificate, Solution, Status
from .solve import solve

__all__ = [
    "Budget",
    "BudgetKind",
    "Certificate",
    "Complexity",
    "Frontier",
    "Guard",
    "LayerPlan",
    "Measured",
    "ParetoCurve",
    "ParetoData",
    "ParetoPoint",
    "Plan",
    "PlanData",
    "Problem",
    "Solution",
    "Status",
    "assignment_digest",
    "check_layers",
    "cost_range",
    "draw_pareto",
    "draw_plan",
    "label_layers",
    "layer_chart_width",
    "lower_frontier",
    "pareto_curve",
    "pareto_data",
    "parse_budget",
    "plan_data",
    "read_plan",
    "save_figure",
    "solve",
    "write_plan",
]
