"""Exact scores: replace one layer's weight, replay the network from that layer on, measure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..network import Data, Network, batch_size, batches, from_rows, kl_divergence
from ..quantizer import Option, Quantizer
from .candidates import OptionWeights, layer_options, perturbations
from .store import standard_error

__all__ = ["ExactScores", "score_exact"]


@dataclass(frozen=True)
class ExactScores:
    """Measured losses of quantizing one layer alone.

    Attributes
    ----------
    loss, error : Tensor, shape (layers, options), float64
        ``KL(float || quantized)``, mean over samples, and its standard error.
    """

    loss: Tensor
    error: Tensor


def score_exact(
    network: Network,
    data: Data,
    options: Sequence[Option],
    quantizer: Quantizer,
    *,
    weights: OptionWeights | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> ExactScores:
    """Loss of every option by measurement: layers times options replays of the rest of the network.

    A replay starts at the layer, from values cached at that cut, so it costs only what lies behind it.
    """
    count = len(data.inputs)
    shape = (len(network.layers), len(options))
    total, square = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    with torch.inference_mode():
        changed = [
            _changed(network, index, options, quantizer, weights) for index in range(len(network.layers))
        ]
        for part in batches(count, batch_size(network)):
            replay = network.replay(data.inputs[part].to(network.device))
            reference: Tensor | None = None
            for row, layer in enumerate(network.layers):
                replay.advance(layer)
                if reference is None:
                    reference = replay.finish()
                for column, weight in changed[row].items():
                    loss = kl_divergence(reference, replay.finish({layer.weight: weight})).cpu()
                    total[row, column] += loss.sum()
                    square[row, column] += loss.square().sum()
            if on_progress is not None:
                on_progress(part.stop, count)
    return ExactScores(total / count, standard_error(total, square, count))


def _changed(
    network: Network,
    index: int,
    options: Sequence[Option],
    quantizer: Quantizer,
    weights: OptionWeights | None,
) -> dict[int, Tensor]:
    layer = network.layers[index]
    weight = network.weight(layer)
    deltas = perturbations(network, layer, options, quantizer, weights=weights)
    return {
        column: weight + from_rows(layer, deltas[:, column]).to(weight.dtype)
        for column in layer_options(layer, options)
    }
