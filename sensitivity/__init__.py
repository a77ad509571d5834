"""Scores: what every option of every layer costs in quality, and the document that keeps them."""

from .activation_grids import ActivationSettings, SiteOptions, site_options
from .activation_profile import ActivationProfile, SiteProfile
from .activation_scores import ActivationScores, score_activations, score_activations_exact
from .candidates import OptionWeights, check_options
from .chart import SensitivityData, draw_sensitivity, sensitivity_data
from .confidence import doubtful_layers, with_confidence
from .exact import ExactScores, score_exact
from .feasible import Ledger, check_feasible, ledger_of
from .fisher import FisherScores, FisherSettings, score_fisher
from .joint import Objective, joint_problem, unit_factors
from .labels import Labels
from .measure import check_profile, measure_profile, profile_fingerprint, tool_versions
from .merge import merge_scores
from .planning import (
    best_uniform_plan,
    budget_bits,
    certifies_activations,
    solve_plan,
    uniform_plans,
    uniform_within,
)
from .problems import Posed, pose, problem_of
from .profile import (
    After,
    Fingerprint,
    LayerProfile,
    OptionScore,
    Profile,
    ProfileArrays,
    Stability,
    StabilityRound,
    read_profile,
    write_profile,
)
from .refine import Refined, RefineStep, refine, refine_plan
from .stability import MOST_REGRET, measure_until_stable
from .task import Task, activation_loss, additive_loss, pose_task, predicted_loss, resolved_for, task_of
from .uniform import uniform_options
from .value_scores import score_values

__all__ = [
    "MOST_REGRET",
    "ActivationProfile",
    "ActivationScores",
    "ActivationSettings",
    "After",
    "ExactScores",
    "Fingerprint",
    "FisherScores",
    "FisherSettings",
    "Labels",
    "LayerProfile",
    "Ledger",
    "Objective",
    "OptionScore",
    "OptionWeights",
    "Posed",
    "Profile",
    "ProfileArrays",
    "RefineStep",
    "Refined",
    "SensitivityData",
    "SiteOptions",
    "SiteProfile",
    "Stability",
    "StabilityRound",
    "Task",
    "activation_loss",
    "additive_loss",
    "best_uniform_plan",
    "budget_bits",
    "certifies_activations",
    "check_feasible",
    "check_options",
    "check_profile",
    "doubtful_layers",
    "draw_sensitivity",
    "joint_problem",
    "ledger_of",
    "measure_profile",
    "measure_until_stable",
    "merge_scores",
    "pose",
    "pose_task",
    "predicted_loss",
    "problem_of",
    "profile_fingerprint",
    "read_profile",
    "refine",
    "refine_plan",
    "resolved_for",
    "score_activations",
    "score_activations_exact",
    "score_exact",
    "score_fisher",
    "score_values",
    "sensitivity_data",
    "site_options",
    "solve_plan",
    "task_of",
    "tool_versions",
    "uniform_options",
    "uniform_plans",
    "uniform_within",
    "unit_factors",
    "with_confidence",
    "write_profile",
]
