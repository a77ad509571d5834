"""Scores: what every option of every layer costs in quality, and the document that keeps them."""

from .chart import SensitivityData, draw_sensitivity, sensitivity_data
from .exact import ExactScores, score_exact
from .feasible import Ledger, check_feasible, ledger_of
from .fisher import FisherScores, FisherSettings, score_fisher
from .labels import Labels
from .measure import check_profile, measure_profile, profile_fingerprint, tool_versions
from .planning import best_uniform_plan, budget_bits, solve_plan
from .problems import channel_problem, layer_problem, problem_of, uniform_options
from .profile import LayerProfile, OptionScore, Profile, ProfileArrays, read_profile, write_profile

__all__ = [
    "ExactScores",
    "FisherScores",
    "FisherSettings",
    "Labels",
    "LayerProfile",
    "Ledger",
    "OptionScore",
    "Profile",
    "ProfileArrays",
    "SensitivityData",
    "best_uniform_plan",
    "budget_bits",
    "channel_problem",
    "check_feasible",
    "check_profile",
    "draw_sensitivity",
    "layer_problem",
    "ledger_of",
    "measure_profile",
    "problem_of",
    "profile_fingerprint",
    "read_profile",
    "score_exact",
    "score_fisher",
    "sensitivity_data",
    "solve_plan",
    "tool_versions",
    "uniform_options",
    "write_profile",
]
