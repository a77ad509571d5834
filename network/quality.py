"""Quality of a changed network against the float one, on given data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from .data import Data
from .network import Network

__all__ = ["Quality", "batches", "float_logits", "kl_divergence", "measure_quality"]

BATCH = 64


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
    """

    loss: float
    standard_error: float
    samples: int
    accuracy: float | None = None
    float_accuracy: float | None = None


def kl_divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """``sum_k p_k (log p_k - log q_k)`` with p, q the softmax of both logits, mean over positions.

    Parameters
    ----------
    reference, logits : Tensor, shape (samples, ..., classes)

    Returns
    -------
    Tensor, shape (samples,), float64
    """
    p = reference.double().log_softmax(-1)
    q = logits.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).flatten(1).mean(1) if p.ndim > 2 else (p.exp() * (p - q)).sum(-1)


def batches(count: int, size: int = BATCH) -> Iterator[slice]:
    """Slices that cut `count` samples into pieces of `size`."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def float_logits(network: Network, data: Data, batch: int = BATCH) -> Tensor:
    """Output of the float network for every sample, on the CPU.

    Raises
    ------
    InputError
        The network's own output is NaN or infinite.
    """
    logits = torch.cat(list(_outputs(network, data, None, batch)))
    if not bool(torch.isfinite(logits).all()):
        raise InputError(
            f"the float network's output on data '{data.name}' is NaN or infinite; check its weights and "
            "that the inputs are scaled as in training"
        )
    return logits


def measure_quality(
    network: Network,
    data: Data,
    tensors: Mapping[str, Tensor],
    reference: Tensor,
    *,
    batch: int = BATCH,
    on_batch: Callable[[int], None] | None = None,
) -> Quality:
    """Quality of the network with some tensors replaced.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Replaced weights and biases.
    reference : Tensor
        `float_logits` of the same data.
    on_batch : callable, optional
        Told the number of samples done.
    """
    losses, right, float_right, done = [], 0, 0, 0
    for logits in _outputs(network, data, tensors, batch):
        part = slice(done, done + len(logits))
        losses.append(kl_divergence(reference[part], logits))
        if data.labels is not None:
            right += int((logits.argmax(-1) == data.labels[part]).sum())
            float_right += int((reference[part].argmax(-1) == data.labels[part]).sum())
        done = part.stop
        if on_batch is not None:
            on_batch(done)
    loss = torch.cat(losses)
    answers = data.labels.numel() if data.labels is not None else 0
    return Quality(
        loss=float(loss.mean()),
        standard_error=float(loss.std() / len(loss) ** 0.5) if len(loss) > 1 else 0.0,
        samples=len(loss),
        accuracy=right / answers if answers else None,
        float_accuracy=float_right / answers if answers else None,
    )


def _outputs(
    network: Network, data: Data, tensors: Mapping[str, Tensor] | None, batch: int
) -> Iterator[Tensor]:
    with torch.inference_mode():
        for part in batches(len(data.inputs), batch):
            yield network.run(data.inputs[part].to(network.device), tensors=tensors).cpu()
