"""The finished network on disk, the way back, and the ways on to other runtimes."""

from .latency import LayerLatency, measure_latency
from .network import PLAN, PROGRAM, WEIGHTS, load, read_run, save_network
from .onnx_file import LayerSize, OnnxExport, export_onnx
from .packed import PackedNetwork, read_packed, write_packed
from .recipes import TOOLKITS, Recipe, Toolkit, export_recipe, make_recipe
from .state import export_state, load_state

__all__ = [
    "PLAN",
    "PROGRAM",
    "TOOLKITS",
    "WEIGHTS",
    "LayerLatency",
    "LayerSize",
    "OnnxExport",
    "PackedNetwork",
    "Recipe",
    "Toolkit",
    "export_onnx",
    "export_recipe",
    "export_state",
    "load",
    "load_state",
    "make_recipe",
    "measure_latency",
    "read_packed",
    "read_run",
    "save_network",
    "write_packed",
]
