"""The captured model: a program with its tensors, its layers and blocks, and the data to run it on."""

from .blocks import Block
from .capture import capture
from .data import Data, check_data, load_data
from .fingerprint import fingerprint
from .layer import Layer, LayerCall, from_rows, rows
from .load import load_model, text_form
from .network import InputShape, Network
from .paired import PairedDrop, accuracy_drop, mean_drop, perplexity_rise
from .program import load_program, save_program
from .quality import (
    Quality,
    SampleQuality,
    batches,
    float_logits,
    kl_divergence,
    measure_quality,
    measure_samples,
)
from .replay import Replay
from .tokens import with_next_tokens

__all__ = [
    "Block",
    "Data",
    "InputShape",
    "Layer",
    "LayerCall",
    "Network",
    "PairedDrop",
    "Quality",
    "Replay",
    "SampleQuality",
    "accuracy_drop",
    "batches",
    "capture",
    "check_data",
    "fingerprint",
    "float_logits",
    "from_rows",
    "kl_divergence",
    "load_data",
    "load_model",
    "load_program",
    "mean_drop",
    "measure_quality",
    "measure_samples",
    "perplexity_rise",
    "rows",
    "save_program",
    "text_form",
    "with_next_tokens",
]
