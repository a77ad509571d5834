"""Final integer weights for a plan, and what the network made of them is worth."""

from .adaquant import AdaQuant
from .bias_correction import correct_biases
from .bias_tuning import tune_biases
from .block_options import BlockOptions
from .contest import Compared, contest
from .corrections import Corrected, Correction, correct
from .drop import can_measure
from .edited import accept_edits
from .finalize import (
    Finalized,
    LayersOnDemand,
    StoredLayer,
    StoredPart,
    finalize_nearest,
    layer_shapes,
    value_tensors,
)
from .gptq import Gptq, gptq_layer
from .gram import InputGram
from .judge import Candidate, Judged, judge, measure_competing, measure_finalized
from .lapq import Lapq
from .learn import Learning
from .lossless import Way, find_least
from .match_statistics import match_statistics
from .method import Method, Nearest, Progress
from .multipoint import multipoint_plan
from .named import BlockLoss, LearningChoices, MethodName, method_named
from .options import AdaQuantOptions, GptqOptions
from .presets import PRESETS, Preset, PresetName
from .rounding import LearnedRounding, UnitReport
from .straight_through import StraightThrough
from .units import Granularity
from .values import check_values, plan_values, with_values

__all__ = [
    "PRESETS",
    "AdaQuant",
    "AdaQuantOptions",
    "BlockLoss",
    "BlockOptions",
    "Candidate",
    "Compared",
    "Corrected",
    "Correction",
    "Finalized",
    "Gptq",
    "GptqOptions",
    "Granularity",
    "InputGram",
    "Judged",
    "Lapq",
    "LayersOnDemand",
    "LearnedRounding",
    "Learning",
    "LearningChoices",
    "Method",
    "MethodName",
    "Nearest",
    "Preset",
    "PresetName",
    "Progress",
    "StoredLayer",
    "StoredPart",
    "StraightThrough",
    "UnitReport",
    "Way",
    "accept_edits",
    "can_measure",
    "check_values",
    "contest",
    "correct",
    "correct_biases",
    "finalize_nearest",
    "find_least",
    "gptq_layer",
    "judge",
    "layer_shapes",
    "match_statistics",
    "measure_competing",
    "measure_finalized",
    "method_named",
    "multipoint_plan",
    "plan_values",
    "tune_biases",
    "value_tensors",
    "with_values",
]
