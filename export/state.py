"""The quantized weights as plain floats, for code that knows nothing of low bits."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ..documents import replace_file
from .network import read_run

__all__ = ["export_state", "load_state"]


def load_state(run: str | Path) -> dict[str, Tensor]:
    """Every tensor of the quantized network by the name that the user's module gave it, weights as floats.

    What was folded is gone: with batch norms folded into the layers before them, names and values are those
    that `torch.nn.utils.fuse_conv_bn_eval` leaves.

    Parameters
    ----------
    run : str or Path
        Folder with ``weights.safetensors``.

    Examples
    --------
    >>> module.load_state_dict(apportion.load_state("run"), strict=False)  # doctest: +SKIP

    Raises
    ------
    InputError
        The file is missing or damaged, or not of the run's plan.
    """
    return dict(read_run(run).tensors())


def export_state(run: str | Path, path: str | Path) -> int:
    """Write `load_state` as a safetensors file; returns its size in bytes.

    Raises
    ------
    InputError
        The run is missing or damaged, or the file cannot be written.
    """
    state = load_state(run)
    with replace_file(Path(path)) as temporary:
        save_file(state, temporary)
    return Path(path).stat().st_size
