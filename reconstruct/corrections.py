"""Corrections: what can be done after any method, at no change of size."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path

from ..allocator import Plan
from ..network import Data, Network
from .bias_correction import correct_biases
from .bias_tuning import tune_biases
from .finalize import Finalized
from .held_out import learned_and_judged
from .match_statistics import match_statistics
from .method import Method, Progress
from .network_loss import NetworkLoss, surely_less

__all__ = ["Corrected", "Correction", "correct"]

HELD_OUT = 1 / 4


class Correction(enum.StrEnum):
    """What is corrected after the weights are known; the value is how it is written."""

    BIAS = "bias"
    """Mean outputs, layer by layer, in closed form; see `correct_biases`."""
    BATCH_NORM = "batch-norm"
    """Means and scales of outputs, one layer after the other, in closed form; see `match_statistics`."""
    TUNE = "tune"
    """All biases together, learned from the network's output; see `tune_biases`."""


def correct(
    network: Network, data: Data, finalized: Finalized, correction: Correction, seed: int = 0
) -> Finalized:
    """Carry out one correction; several are made one after the other.

    What is given comes back where the correction does not lower the loss on the last quarter of the data,
    from which it does not learn, by more than chance. Bias correction needs that too: after a method that has
    layers make up for those before them, it takes back what they made up for.

    Parameters
    ----------
    data : Data
        Calibration inputs.
    finalized : Finalized
        Of any method, perhaps corrected already.
    correction : Correction
    seed : int
        Of what is drawn, where the correction draws.

    Raises
    ------
    InputError
        The network has several inputs.
    """
    if correction is Correction.BIAS:
        return _guarded_biases(network, data, finalized)
    if correction is Correction.BATCH_NORM:
        return match_statistics(network, data, finalized)
    return tune_biases(network, data, finalized, seed)


def _guarded_biases(network: Network, data: Data, finalized: Finalized) -> Finalized:
    learned, judged = learned_and_judged(len(data.inputs), HELD_OUT)
    some = data.part(slice(learned.stop))
    found, judge = correct_biases(network, some, finalized), NetworkLoss(network, data, judged)
    gains = surely_less(*(judge.by_sample(each.tensors(network)) for each in (found, finalized)))
    return found if gains else finalized


@dataclass(frozen=True)
class Corrected:
    """A method followed by corrections, which is a method again.

    Parameters
    ----------
    method : Method
    corrections : tuple of Correction
        In the order in which they are made.
    seed : int
        Of what the corrections draw.
    """

    method: Method
    corrections: tuple[Correction, ...]
    seed: int = 0

    def finalize(
        self,
        network: Network,
        plan: Plan,
        data: Data,
        progress: Progress | None = None,
        store: Path | None = None,
    ) -> Finalized:
        """Integer weights of a plan by the method, then corrected; progress and store are the method's.

        Raises
        ------
        InputError
            The plan does not fit the network, or the network has several inputs.
        """
        finalized = self.method.finalize(network, plan, data, progress, store)
        for correction in self.corrections:
            finalized = correct(network, data, finalized, correction, self.seed)
        return finalized
