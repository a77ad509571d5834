"""The captured model: a program with its tensors, its layers and blocks, and the data to run it on."""

from .blocks import Block
from .capture import capture
from .data import Data, check_data, load_data
from .fingerprint import fingerprint
from .layer import Layer, LayerCall, from_rows, rows
from .load import load_model
from .network import InputShape, Network
from .program import load_program, save_program
from .quality import Quality, batches, float_logits, kl_divergence, measure_quality
from .replay import Replay

__all__ = [
    "Block",
    "Data",
    "InputShape",
    "Layer",
    "LayerCall",
    "Network",
    "Quality",
    "Replay",
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
    "measure_quality",
    "rows",
    "save_program",
]
