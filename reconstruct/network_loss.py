"""The loss of the whole network on some of the calibration data, for methods that search by it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..network import Data, Network, float_logits, measure_quality
from .finalize import Finalized

__all__ = ["NetworkLoss"]


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
        self._data = Data(data.inputs[samples.start : samples.stop], None, data.name)
        self._reference = float_logits(network, self._data)

    def of(self, tensors: Mapping[str, Tensor]) -> float:
        """The loss with some tensors replaced; infinite where the output is not finite."""
        loss = measure_quality(self._network, self._data, tensors, self._reference).loss
        return loss if loss == loss else float("inf")

    def of_finalized(self, finalized: Finalized) -> float:
        """The loss of finalized weights and biases."""
        return self.of(finalized.tensors(self._network))
