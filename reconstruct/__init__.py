"""Final integer weights for a plan, and what the network made of them is worth."""

from .adaquant import AdaQuant
from .bias_correction import correct_biases
from .bias_tuning import tune_biases
from .contest import Compared, contest
from .corrections import Corrected, Correction, correct
from .drop import can_measure
from .edited import accept_edits
from .finalize import Finalized, LayersOnDemand, StoredLayer, StoredPart, finalize_nearest, layer_shapes
from .gptq import Gptq, gptq_layer
from .gram import InputGram
from .judge import Candidate, Judged, judge, measure_finalized
from .lapq import Lapq
from .learn import Learning
from .lossless import Way, find_least
from .match_statistics import match_statistics
from .method import Method, Nearest, Progress
from .multipoint import multipoint_plan
from .named import MethodName, method_named
from .options import GptqOptions
from .rounding import LearnedRounding, UnitReport
from .straight_through import StraightThrough
from .units import Granularity

__all__ = [
    "AdaQuant",
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
    "Method",
    "MethodName",
    "Nearest",
    "Progress",
    "StoredLayer",
    "StoredPart",
    "StraightThrough",
    "UnitReport",
    "Way",
    "accept_edits",
    "can_measure",
    "contest",
    "correct",
    "correct_biases",
    "finalize_nearest",
    "find_least",
    "gptq_layer",
    "judge",
    "layer_shapes",
    "match_statistics",
    "measure_finalized",
    "method_named",
    "multipoint_plan",
    "tune_biases",
]
