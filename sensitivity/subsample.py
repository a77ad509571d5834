"""Which samples are worth a backward pass: those whose output is not yet certain.

The trace of a sample's Fisher information, ``t = 1 - sum_k p_k^2``, bounds how much any small change of the
network can move its output distribution. On trained networks few samples hold nearly all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..network import Data, Network, finite_outputs, mean_over_positions

__all__ = ["Chosen", "choose_samples"]

LEAST_SAMPLES = 32
BISECTIONS = 100


@dataclass(frozen=True)
class Chosen:
    """Samples drawn with unequal probability.

    Attributes
    ----------
    index : Tensor, shape (chosen,), int64
        Ascending.
    weight : Tensor, shape (chosen,), float64
        ``1 / probability``; weighted sums over the chosen are unbiased for sums over all.
    """

    index: Tensor
    weight: Tensor

    def cut(self, size: int) -> tuple[Chosen, ...]:
        """The same samples in pieces of `size`."""
        return tuple(map(Chosen, torch.split(self.index, size), torch.split(self.weight, size)))


def choose_samples(network: Network, data: Data, share: float, seed: int) -> Chosen:
    """Draw samples with probability ``min(1, t / tau)``, proportional to their trace up to a certain keep.

    tau is such that, in expectation, as many are drawn as the samples of largest trace that together hold
    `share` of the whole, at least 32. Samples left out are made up for by the weights of those kept.

    Parameters
    ----------
    share : float
        Above 0; 1 keeps every sample, and then the float network is not run.

    Raises
    ------
    InputError
        The float network's output is NaN or infinite.
    """
    samples = len(data.inputs)
    if share >= 1:
        return Chosen(torch.arange(samples), torch.ones(samples, dtype=torch.float64))
    trace = torch.cat([_trace(logits) for logits in finite_outputs(network, data)])
    ordered = trace.sort(descending=True).values.cumsum(0)
    wanted = int((ordered < share * ordered[-1]).sum()) + 1
    probability = _probabilities(trace, min(samples, max(LEAST_SAMPLES, wanted)))
    drawn = torch.rand(samples, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    index = (drawn < probability).nonzero()[:, 0]
    return Chosen(index, 1 / probability[index])


def _trace(logits: Tensor) -> Tensor:
    """``1 - sum_k p_k^2`` of every sample, mean over positions, shape (samples,), float64."""
    return mean_over_positions(
        lambda rows: (1 - rows.double().softmax(-1).square().sum(-1)).clamp_min(0), logits
    )


def _probabilities(trace: Tensor, count: int) -> Tensor:
    """``min(1, t / tau)`` with the tau at which they sum to `count`, found by bisection of its logarithm."""
    # A sample without any trace is kept as if it had the least number that is not zero.
    trace = trace.clamp_min(torch.finfo(torch.float32).tiny)
    low, high = trace.min().log(), (trace.sum() / count).log()
    high = torch.maximum(high, trace.max().log())
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if (trace / middle.exp()).clamp_max(1).sum() > count:
            low = middle
        else:
            high = middle
    return (trace / low.exp()).clamp_max(1)
