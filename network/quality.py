"""Quality of a changed network against the float one, on given data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .data import Data
from .network import Network
from .outputs import outputs

__all__ = [
    "Quality",
    "SampleQuality",
    "kl_divergence",
    "mean_over_positions",
    "measure_quality",
    "measure_samples",
]

PIECE = 2**22
"""Numbers of which doubles are made at once."""


@dataclass(frozen=True)
class Quality:
    """How far a network is from the float one.

    Attributes
    ----------
    loss : float
        ``KL(float || changed)``, mean over samples (tokens), in nats.
    standard_error : float
        Of `loss`, over samples.
    samples : int
    accuracy, float_accuracy : float or None
        Share of right top-1 answers, where the data has labels.
    perplexity, float_perplexity : float or None
        ``exp`` of the mean cross-entropy of all tokens, where the data has a label per token.
    """

    loss: float
    standard_error: float
    samples: int
    accuracy: float | None = None
    float_accuracy: float | None = None
    perplexity: float | None = None
    float_perplexity: float | None = None


@dataclass(frozen=True, eq=False)
class SampleQuality:
    """How far a network is from the float one, sample by sample.

    Attributes
    ----------
    loss : Tensor, shape (samples,), float64
        ``KL(float || changed)``, mean over positions, in nats.
    right, float_right : bool Tensor or None
        Whether the changed and the float network's top-1 answers are right, in the shape of the labels.
    cross_entropy, float_cross_entropy : Tensor or None, shape (samples,), float64
        ``-log q(label)`` of the changed and of the float network, mean over positions, in nats.
    """

    loss: Tensor
    right: Tensor | None = None
    float_right: Tensor | None = None
    cross_entropy: Tensor | None = None
    float_cross_entropy: Tensor | None = None

    def quality(self) -> Quality:
        """Means over samples."""
        count = len(self.loss)
        return Quality(
            loss=float(self.loss.mean()),
            standard_error=float(self.loss.std() / count**0.5) if count > 1 else 0.0,
            samples=count,
            accuracy=_share(self.right),
            float_accuracy=_share(self.float_right),
            perplexity=self._perplexity(self.cross_entropy),
            float_perplexity=self._perplexity(self.float_cross_entropy),
        )

    def _perplexity(self, cross_entropy: Tensor | None) -> float | None:
        if self.right is None or self.right.ndim < 2 or cross_entropy is None:
            return None
        # A double holds no more.
        return float(cross_entropy.mean().clamp_max(700).exp())


def kl_divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """``sum_k p_k (log p_k - log q_k)`` with p, q the softmax of both logits, mean over positions.

    Parameters
    ----------
    reference, logits : Tensor, shape (samples, ..., classes)

    Returns
    -------
    Tensor, shape (samples,), float64
    """

    def divergence(reference: Tensor, logits: Tensor) -> Tensor:
        p = reference.double().log_softmax(-1)
        q = logits.double().log_softmax(-1)
        return (p.exp() * (p - q)).sum(-1)

    return mean_over_positions(divergence, reference, logits)


def measure_quality(
    network: Network,
    data: Data,
    tensors: Mapping[str, Tensor],
    reference: Tensor,
    *,
    on_batch: Callable[[int], None] | None = None,
) -> Quality:
    """Quality of the network with some tensors replaced: the means of `measure_samples`."""
    return measure_samples(network, data, tensors, reference, on_batch=on_batch).quality()


def measure_samples(
    network: Network,
    data: Data,
    tensors: Mapping[str, Tensor],
    reference: Tensor,
    *,
    on_batch: Callable[[int], None] | None = None,
) -> SampleQuality:
    """Quality of the network with some tensors replaced, for every sample.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Replaced weights and biases.
    reference : Tensor
        `float_logits` of the same data.
    on_batch : callable, optional
        Told the number of samples done.
    """
    parts: list[SampleQuality] = []
    done = 0
    for logits in outputs(network, data.inputs, tensors):
        here = slice(done, done + len(logits))
        labels = data.labels[here] if data.labels is not None else None
        parts.append(_compare(reference[here], logits, labels))
        done = here.stop
        if on_batch is not None:
            on_batch(done)

    def joined(name: str) -> Tensor | None:
        return torch.cat([getattr(part, name) for part in parts]) if data.labels is not None else None

    return SampleQuality(
        torch.cat([part.loss for part in parts]),
        joined("right"),
        joined("float_right"),
        joined("cross_entropy"),
        joined("float_cross_entropy"),
    )


def _compare(reference: Tensor, logits: Tensor, labels: Tensor | None) -> SampleQuality:
    loss = kl_divergence(reference, logits)
    if labels is None:
        return SampleQuality(loss)
    if labels.ndim > 1:
        # The last token may have no label.
        reference, logits = reference[:, : labels.shape[1]], logits[:, : labels.shape[1]]
    return SampleQuality(
        loss,
        logits.argmax(-1) == labels,
        reference.argmax(-1) == labels,
        _cross_entropy(logits, labels),
        _cross_entropy(reference, labels),
    )


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    def entropy(logits: Tensor, labels: Tensor) -> Tensor:
        return -logits.double().log_softmax(-1).gather(-1, labels)[..., 0]

    return mean_over_positions(entropy, logits, labels.unsqueeze(-1))


def mean_over_positions(of_rows: Callable[..., Tensor], *values: Tensor) -> Tensor:
    """The mean over positions, shape (samples,), of a function of rows.

    Parameters
    ----------
    of_rows : callable
        From rows (positions, classes) of each of the values to one number per position; called on pieces, so
        that what it makes of doubles is bounded.
    values : Tensor, shape (samples, ..., classes)
    """
    shape = values[0].shape
    size = max(1, PIECE // shape[-1])
    pieces = zip(*(torch.split(value.flatten(0, -2), size) for value in values), strict=True)
    rows = torch.cat([of_rows(*piece) for piece in pieces])
    return rows.view(shape[:-1]).flatten(1).mean(1) if len(shape) > 2 else rows


def _share(right: Tensor | None) -> float | None:
    return int(right.sum()) / right.numel() if right is not None and right.numel() else None
