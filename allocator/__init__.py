"""The mathematics of the budget: problem, frontier, proven solution, budget grammar, plan and its charts."""

from .activation_plan import (
    FLOAT_BITS,
    ActivationChoice,
    ActivationPlan,
    LiveStep,
    activation_bits,
    layer_activations,
    layer_widths,
    peak_bits,
    peak_limits,
)
from .budget import ACT_MEMORY, SIZE, AmountForm, Budget, BudgetKind, average_budget, parse_budget
from .chart import label_layers, layer_chart_width, save_figure
from .codes import CodeSavings
from .conflict import check_together
from .constraints import (
    Constraints,
    ConstraintsFile,
    converted,
    match_layers,
    read_constraints,
    value_rules,
)
from .convex import solve_constrained
from .cut import LayerCut, fitting_cut
from .efficient import Columns, efficient, joined
from .frontier_chart import DropSeries, FrontierData, draw_frontier, frontier_data
from .hull import Frontier, lower_frontier
from .joint import JointProblem, descend
from .kept import Spending, check_rules, check_value_rules, excesses, further_costs, spendings
from .layer_plan import LayerPlan
from .measured_frontier import (
    FrontierCurve,
    FrontierPoint,
    MeasuredFrontier,
    read_frontier,
    write_frontier,
)
from .multi import MultiProblem
from .pareto import ParetoCurve, pareto_curve
from .pareto_chart import ParetoData, ParetoPoint, draw_pareto, pareto_data
from .plan import (
    Complexity,
    Guard,
    Measured,
    Plan,
    Reconstruction,
    Refinement,
    assignment_digest,
    check_layers,
    read_plan,
    write_plan,
)
from .plan_chart import PlanData, draw_plan, plan_data
from .problem import Problem, cost_range
from .rules import Rules, expand_auto, match_rules
from .solution import Certificate, MultiSolution, Solution, Status
from .solve import deadline_after, solve
from .solve_joint import certified_joint, search_joint, solve_joint
from .solve_multi import solve_multi
from .tables import BOPS, COUNTED, FLOAT_OPTION, MACS, CostTable, WholeCosts, read_table
from .tolerance import Drop, DropKind, Search, SearchOutcome, Tolerance, Trial, parse_tolerance
from .unit import Unit, parse_unit

__all__ = [
    "ACT_MEMORY",
    "BOPS",
    "COUNTED",
    "FLOAT_BITS",
    "FLOAT_OPTION",
    "MACS",
    "SIZE",
    "ActivationChoice",
    "ActivationPlan",
    "AmountForm",
    "Budget",
    "BudgetKind",
    "Certificate",
    "CodeSavings",
    "Columns",
    "Complexity",
    "Constraints",
    "ConstraintsFile",
    "CostTable",
    "Drop",
    "DropKind",
    "DropSeries",
    "Frontier",
    "FrontierCurve",
    "FrontierData",
    "FrontierPoint",
    "Guard",
    "JointProblem",
    "LayerCut",
    "LayerPlan",
    "LiveStep",
    "Measured",
    "MeasuredFrontier",
    "MultiProblem",
    "MultiSolution",
    "ParetoCurve",
    "ParetoData",
    "ParetoPoint",
    "Plan",
    "PlanData",
    "Problem",
    "Reconstruction",
    "Refinement",
    "Rules",
    "Search",
    "SearchOutcome",
    "Solution",
    "Spending",
    "Status",
    "Tolerance",
    "Trial",
    "Unit",
    "WholeCosts",
    "activation_bits",
    "assignment_digest",
    "average_budget",
    "certified_joint",
    "check_layers",
    "check_rules",
    "check_together",
    "check_value_rules",
    "converted",
    "cost_range",
    "deadline_after",
    "descend",
    "draw_frontier",
    "draw_pareto",
    "draw_plan",
    "efficient",
    "excesses",
    "expand_auto",
    "fitting_cut",
    "frontier_data",
    "further_costs",
    "joined",
    "label_layers",
    "layer_activations",
    "layer_chart_width",
    "layer_widths",
    "lower_frontier",
    "match_layers",
    "match_rules",
    "pareto_curve",
    "pareto_data",
    "parse_budget",
    "parse_tolerance",
    "parse_unit",
    "peak_bits",
    "peak_limits",
    "plan_data",
    "read_constraints",
    "read_frontier",
    "read_plan",
    "read_table",
    "save_figure",
    "search_joint",
    "solve",
    "solve_constrained",
    "solve_joint",
    "solve_multi",
    "spendings",
    "value_rules",
    "write_frontier",
    "write_plan",
]
