"""The loss of the whole network on some of the calibration data, for methods that search by it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..network import Data, Network, float_logits, measure_samples
from .finalize import Finalized

__all__ = ["NetworkLoss", "surely_less"]

SURE = 0.977
"""That of two standard errors above or below, of many samples."""


class NetworkLoss:
    """``KL(float || changed)``, mean over samples, in nats.

    Parameters
    ----------
    network : Network
    data : Data
    samples : range
        Those that are looked at.
    """

    def __init__(self, network: Network, data: Data, samples: range) -> None:
        self._network = network
        self._data = data.part(slice(samples.start, samples.stop))
        self._reference = float_logits(network, self._data)

    def of(self, tensors: Mapping[str, Tensor]) -> float:
        """The loss with some tensors replaced; infinite where the output is not finite."""
        return float(self.by_sample(tensors).mean())

    def by_sample(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The loss of every sample, shape (samples,), float64."""
        loss = measure_samples(self._network, self._data, tensors, self._reference).loss
        return loss.nan_to_num(nan=torch.inf, posinf=torch.inf)

    def of_finalized(self, finalized: Finalized) -> float:
        """The loss of finalized weights and biases."""
        return self.of(finalized.tensors(self._network))


def surely_less(losses: Tensor, others: Tensor) -> bool:
    """Whether losses are less in the mean than others of the same samples, by more than chance.

    Of the differences sample by sample, by Student's t: by two standard errors where there are many, by 2.4
    of eight samples and by 14 of two. A correction is fitted to few samples: a gain within the noise of the
    others is as likely a loss on new data. A single sample says nothing of chance, and is never enough but
    where the others are not finite.
    """
    # Loading a finished run needs no scipy.
    from scipy.special import stdtrit

    difference = losses - others
    if not bool(difference.isfinite().all()):
        return bool(losses.isfinite().all())
    count = len(difference)
    if count == 1:
        return False
    noise = float(difference.std()) / math.sqrt(count)
    return float(difference.mean()) < -float(stdtrit(count - 1, SURE)) * noise
