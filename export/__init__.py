"""The finished network on disk, and the way back."""

from .network import PROGRAM, WEIGHTS, load, save_network
from .packed import PackedNetwork, read_packed, write_packed

__all__ = ["PROGRAM", "WEIGHTS", "PackedNetwork", "load", "read_packed", "save_network", "write_packed"]
