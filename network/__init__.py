"""The captured model: a program with its tensors, its layers and blocks, and the data to run it on."""

from .activation import (
    activation_entries,
    activation_key,
    dynamic_activation,
    is_activation_key,
    quantize_activation,
    static_activation,
)
from .activations import ACTIVATION_BATCH, Activations, ActivationStore
from .blocks import Block, is_pointwise
from .capture import capture
from .data import Data, check_data, load_data
from .explicit import with_explicit_activations
from .fingerprint import fingerprint
from .heap import give_back_freed_memory
from .layer import Layer, LayerCall, from_rows, rows
from .liveness import LiveValues, live_values
from .load import load_model, text_form
from .network import InputShape, Network
from .order import spread_order
from .outputs import batch_size, batches, finite_outputs, float_logits
from .paired import PairedDrop, accuracy_drop, mean_drop, perplexity_rise
from .program import load_program, save_program
from .quality import (
    Quality,
    SampleQuality,
    kl_divergence,
    mean_over_positions,
    measure_quality,
    measure_samples,
)
from .replay import Replay
from .sample_axis import SAMPLES_FIRST, SampleAxis, different_samples, is_by_sample, sample_axes
from .schedule import Values
from .segments import Segment, cut_segments, kept_values, learned_values
from .site_samples import SiteSample, sample_sites
from .sites import Reader, Site, find_sites
from .tensors import STORED_TYPES, StreamedTensors, overlaid, picked, widened
from .tokens import with_next_tokens

__all__ = [
    "ACTIVATION_BATCH",
    "SAMPLES_FIRST",
    "STORED_TYPES",
    "ActivationStore",
    "Activations",
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
    "SampleAxis",
    "SampleQuality",
    "Segment",
    "Site",
    "SiteSample",
    "StreamedTensors",
    "Values",
    "accuracy_drop",
    "activation_entries",
    "activation_key",
    "batch_size",
    "batches",
    "capture",
    "check_data",
    "cut_segments",
    "different_samples",
    "dynamic_activation",
    "find_sites",
    "fingerprint",
    "finite_outputs",
    "float_logits",
    "from_rows",
    "give_back_freed_memory",
    "is_activation_key",
    "is_by_sample",
    "is_pointwise",
    "kept_values",
    "kl_divergence",
    "learned_values",
    "live_values",
    "load_data",
    "load_model",
    "load_program",
    "mean_drop",
    "mean_over_positions",
    "measure_quality",
    "measure_samples",
    "overlaid",
    "perplexity_rise",
    "picked",
    "quantize_activation",
    "rows",
    "sample_axes",
    "sample_sites",
    "save_program",
    "spread_order",
    "static_activation",
    "text_form",
    "widened",
    "with_explicit_activations",
    "with_next_tokens",
]
