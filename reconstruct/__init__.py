"""Final integer weights for a plan, and what the network made of them is worth."""

from .bias_correction import correct_biases
from .edited import accept_edits
from .finalize import Finalized, StoredLayer, StoredPart, finalize_nearest, layer_shapes
from .judge import Candidate, Judged, judge, measure_finalized

__all__ = [
    "Candidate",
    "Finalized",
    "Judged",
    "StoredLayer",
    "StoredPart",
    "accept_edits",
    "correct_biases",
    "finalize_nearest",
    "judge",
    "layer_shapes",
    "measure_finalized",
]
