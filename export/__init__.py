"""The finished network on disk, the way back, and the ways on to other runtimes."""

from .network import PROGRAM, WEIGHTS, load, save_network
from .onnx_file import LayerSize, OnnxExport, export_onnx
from .packed import PackedNetwork, read_packed, write_packed
from .state import export_state, load_state

__all__ = [
    "PROGRAM",
    "WEIGHTS",
    "LayerSize",
    "OnnxExport",
    "PackedNetwork",
    "export_onnx",
    "export_state",
    "load",
    "load_state",
    "read_packed",
    "save_network",
    "write_packed",
]
