"""The captured model: a program with its tensors, its layers and blocks, and the data to run it on."""

from .activation import (
    activation_entries,
    activation_key,
    dynamic_activation,
    is_activation_key,
    quantize_activation,
    static_activation,
)
from .blocks import Block
from .capture import capture
from .data import Data, check_data, load_data
from .explicit import with_explicit_activations
from .fingerprint import fingerprint
from .layer import Layer, LayerCall, from_rows, rows
from .liveness import LiveValues, live_values
from .load import load_model
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
from .site_samples import SiteSample, sample_sites
from .sites import Reader, Site, find_sites

__all__ = [
    "Block",
    "Data",
    "InputShape",
    "Layer",
    "LayerCall",
    "LiveValues",
    "Network",
    "PairedDrop",
    "Quality",
    "Reader",
    "Replay",
    "SampleQuality",
    "Site",
    "SiteSample",
    "accuracy_drop",
    "activation_entries",
    "activation_key",
    "batches",
    "capture",
    "check_data",
    "dynamic_activation",
    "find_sites",
    "fingerprint",
    "float_logits",
    "from_rows",
    "is_activation_key",
    "kl_divergence",
    "live_values",
    "load_data",
    "load_model",
    "load_program",
    "mean_drop",
    "measure_quality",
    "measure_samples",
    "perplexity_rise",
    "quantize_activation",
    "rows",
    "sample_sites",
    "save_program",
    "static_activation",
    "with_explicit_activations",
]
