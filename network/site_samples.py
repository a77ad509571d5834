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
        The outermost of every batch, and others drawn from every batch alike; on the CPU.
    weights : Tensor, shape (n,), float32
        For how many numbers of the value each stands.

    Notes
    -----
    A network may have a few numbers hundreds of times as large as all others and lean on them ("massive
    activations"). Among thousands of drawn ones they would be missing, or stand for too many, so that
    those at the ends are all kept.
    """

    numbers: Tensor
    weights: Tensor


def sample_sites(
    network: Network,
    data: Data,
    sites: Sequence[Site],
    *,
    count: int = 2**15,
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
) -> dict[str, SiteSample]:
    """Samples of values in the float network, by name of the site, in one pass over the data.

    Parameters
    ----------
    count : int
        Numbers that are drawn of every site, about, besides an eighth as many at each end; what is kept does
        not grow with the data.
    seed : int
        Of what is drawn.

    Raises
    ------
    InputError
        A value holds NaN or infinity; names it.
    """
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {site.name: [] for site in sites}
    share, size = 0, batch_size(network)
    generator = torch.Generator().manual_seed(seed)

    def watch(name: str, value: Tensor) -> Tensor:
        if name in parts:
            flat = value.detach().flatten()
            if not (math.isfinite(float(flat.min())) and math.isfinite(float(flat.max()))):
                raise InputError(
                    f"value '{name}' is NaN or infinite in the float network on data '{data.name}'; check "
                    "that the inputs are scaled as in training"
                )
            parts[name].append(_sample(flat, share, generator))
        return value

    with torch.inference_mode():
        for start in range(0, len(data.inputs), size):
            part = data.inputs[start : start + size]
            # As many numbers of every sample, also where the last batch is short.
            share = math.ceil(count * len(part) / len(data.inputs))
            network.run(part.to(network.device), on_value=watch)
            if on_batch is not None:
                on_batch(start + len(part))
    samples = {}
    for name, of_batches in parts.items():
        numbers, weights = zip(*of_batches, strict=True)
        samples[name] = SiteSample(torch.cat(numbers), torch.cat(weights))
    return samples


def _sample(flat: Tensor, share: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Numbers of a batch, and for how many each stands: the outermost for themselves, others for the rest."""
    if len(flat) <= share:
        numbers = flat.float().cpu()
        return numbers, torch.ones_like(numbers)
    drawn = flat[torch.randint(len(flat), (share,), generator=generator).to(flat.device)]
    above, of_above = _outermost(flat, drawn, largest=True)
    below, of_below = _outermost(flat, drawn, largest=False)
    if len(above):
        drawn = drawn[drawn < above[-1]]
    if len(below):
        drawn = drawn[drawn > below[-1]]
    rest = len(flat) - float(of_above.sum() + of_below.sum())
    of_drawn = torch.full((len(drawn),), rest / len(drawn), dtype=torch.float64)
    weights = torch.cat([of_above, of_below, of_drawn])
    return torch.cat([above, below, drawn]).float().cpu(), weights.float()


def _outermost(flat: Tensor, drawn: Tensor, *, largest: bool) -> tuple[Tensor, Tensor]:
    """The largest or smallest numbers and how many there are of each: an eighth as many as were drawn.

    The farthest first; those at the border stand for all that are like them.
    """
    count = math.ceil(len(drawn) / 8)
    # To sort all would take longer than the network, so only those beyond a number that was drawn are.
    rank = min((len(drawn) + 1) // 2, 4 + math.ceil(2 * count * len(drawn) / len(flat)))
    border = drawn.topk(rank, largest=largest).values[-1]
    beyond = flat[flat > border] if largest else flat[flat < border]
    end = beyond.topk(min(count, len(beyond)), largest=largest).values
    weights = torch.ones(len(end), dtype=torch.float64)
    if len(end):
        tied = (end == end[-1]).cpu()
        weights[tied] = float((beyond == end[-1]).sum()) / float(tied.sum())
    return end, weights
