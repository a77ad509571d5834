"""What values look like on calibration data: their extremes, and a sample of their numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import InputError
from .data import Data
from .outputs import batch_size
from .sites import Site

if TYPE_CHECKING:
    from .network import Network

__all__ = ["SiteSample", "sample_sites"]


@dataclass(frozen=True, eq=False)
class SiteSample:
    """One value over calibration data.

    Attributes
    ----------
    numbers : Tensor, shape (n,), float32
        Drawn from every batch alike, on the CPU.
    low, high : float
        The least and the greatest of all numbers.
    """

    numbers: Tensor
    low: float
    high: float


def sample_sites(
    network: Network,
    data: Data,
    sites: Sequence[Site],
    *,
    count: int = 2**17,
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
) -> dict[str, SiteSample]:
    """Extremes and samples of values in the float network, by name of the site, in one pass over the data.

    Parameters
    ----------
    count : int
        Numbers that are kept of every site, about; what is kept does not grow with the data.
    seed : int
        Of what is drawn.

    Raises
    ------
    InputError
        A value holds NaN or infinity; names it.
    """
    wanted = {site.name for site in sites}
    parts: dict[str, list[Tensor]] = {name: [] for name in wanted}
    extremes: dict[str, tuple[float, float]] = {}
    share, size = 0, batch_size(network)
    generator = torch.Generator().manual_seed(seed)

    def watch(name: str, value: Tensor) -> Tensor:
        if name in wanted:
            flat = value.detach().flatten()
            low, high = float(flat.min()), float(flat.max())
            if not (math.isfinite(low) and math.isfinite(high)):
                raise InputError(
                    f"value '{name}' is NaN or infinite in the float network on data '{data.name}'; check "
                    "that the inputs are scaled as in training"
                )
            before = extremes.get(name, (low, high))
            extremes[name] = min(low, before[0]), max(high, before[1])
            if len(flat) > share:
                flat = flat[torch.randint(len(flat), (share,), generator=generator).to(flat.device)]
            parts[name].append(flat.float().cpu())
        return value

    with torch.inference_mode():
        for start in range(0, len(data.inputs), size):
            part = data.inputs[start : start + size]
            # As many numbers of every sample, also where the last batch is short.
            share = math.ceil(count * len(part) / len(data.inputs))
            network.run(part.to(network.device), on_value=watch)
            if on_batch is not None:
                on_batch(start + len(part))
    return {site.name: SiteSample(torch.cat(parts[site.name]), *extremes[site.name]) for site in sites}
