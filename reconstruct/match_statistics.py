"""Batch-norm re-estimation: mean and scale of every layer's output as in the float network."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..network import ACTIVATION_BATCH, ActivationStore, Data, Layer, LayerCall, Network, batches
from .cells import shares_step, with_factors
from .finalize import Finalized, StoredLayer, value_tensors
from .held_out import learned_and_judged
from .network_loss import NetworkLoss, surely_less
from .streams import Streams, walkable_blocks

__all__ = ["match_statistics", "matched"]

HELD_OUT = 1 / 4
MEMORY_BYTES = 2**31
# A scale beyond these says that the layer's output is broken, not that it is shrunk.
LEAST_SCALE, MOST_SCALE = 0.5, 2.0


def match_statistics(network: Network, data: Data, finalized: Finalized) -> Finalized:
    """Steps and biases that give each channel of a layer the mean and deviation of the float network.

    Batch norms are part of the layers before them, so what re-estimating their statistics would do is done to
    the layers themselves. In network order, with y the output of a channel in the quantized network as far as
    it is corrected, and y_f in the float one,

        scale = std(y_f) / std(y)        all steps of the channel times scale, the codes stay
        bias' = mean(y_f) - scale * (mean(y) - bias)

    over samples and positions. Tensors of one step are not scaled, layers without a bias not shifted.
    Of the weights with the means alone matched and with means and scales matched, those of less loss on the
    last quarter of the data are returned, if they are better there than what was given by more than chance;
    the statistics are those of the other samples.

    Parameters
    ----------
    data : Data
        Calibration inputs.

    Raises
    ------
    InputError
        The network has several inputs.

    References
    ----------
    Hubara et al., "Accurate post training quantization with small calibration sets", ICML 2021;
    Sun et al., "Hybrid 8-bit floating point training and inference for deep neural networks", NeurIPS 2019.
    """
    learned, judged = learned_and_judged(len(data.inputs), HELD_OUT)
    some = data.part(slice(learned.stop))
    judge = NetworkLoss(network, data, judged)
    best = min(
        (matched(network, some, finalized, scale=scale) for scale in (False, True)),
        key=judge.of_finalized,
    )
    gains = surely_less(*(judge.by_sample(each.tensors(network)) for each in (best, finalized)))
    return best if gains else finalized


def matched(network: Network, data: Data, finalized: Finalized, *, scale: bool) -> Finalized:
    """Means, and scales where wanted, matched on all of the data; not compared with what was given."""
    stored = {layer.name: layer for layer in finalized.layers}
    biases = dict(finalized.biases)
    with ActivationStore(MEMORY_BYTES) as store:
        known = value_tensors(finalized.values)
        streams = Streams(network, data, store, with_float=True, replaced=known)
        for block in walkable_blocks(network, data):
            streams.advance(block.entry)
            for layer in block.layers:
                own = network.bias(layer)
                bias = None if layer.bias is None or own is None else biases.get(layer.bias, own)
                _join(streams, layer, stored[layer.name], bias)
                # Rows that are looked up are no channels of an output.
                if layer.lookups:
                    continue
                now, aim = _output_moments(streams, layer)
                if scale:
                    vary = (now.deviation > 0) & (aim.deviation > 0)
                    factors = torch.where(vary, aim.deviation / now.deviation.where(vary, 1.0), 1.0)
                    factors = factors.clamp(LEAST_SCALE, MOST_SCALE)
                    stored[layer.name], factors = _scaled(stored[layer.name], factors)
                else:
                    factors = torch.ones_like(now.mean)
                if bias is not None and layer.bias is not None:
                    shifted = aim.mean - factors * (now.mean - bias.double())
                    biases[layer.bias] = bias = shifted.to(bias)
                _join(streams, layer, stored[layer.name], bias)
    layers = tuple(stored[layer.name] for layer in network.layers)
    return replace(finalized, layers=layers, biases=biases)


@dataclass(frozen=True)
class _Moments:
    """Mean and standard deviation of every channel, shape (channels,), float64."""

    mean: Tensor
    deviation: Tensor


def _join(streams: Streams, layer: Layer, stored: StoredLayer, bias: Tensor | None) -> None:
    streams.replace(layer, stored)
    if bias is not None and layer.bias is not None:
        streams.replaced[layer.bias] = bias.to(streams.network.device)


def _output_moments(streams: Streams, layer: Layer) -> tuple[_Moments, _Moments]:
    """Of a layer's output over samples, positions and uses, in the quantized and in the float network."""
    schedule = streams.network.schedule
    sums = torch.zeros(2, 2, layer.channels, dtype=torch.float64, device=streams.network.device)
    count = 0
    for node in layer.nodes:
        step = schedule.steps[schedule.position[node]]
        assert step.call is not None
        region = streams.region(node)
        for part in batches(len(streams.data.inputs), ACTIVATION_BATCH):
            for index, value in enumerate(streams.batch(region, part)):
                wide = _by_channel(step.call, value).double()
                sums[index, 0] += wide.sum(0)
                sums[index, 1] += wide.square().sum(0)
                count += len(wide) if index == 0 else 0
    mean, square = sums[:, 0] / count, sums[:, 1] / count
    deviation = (square - mean.square()).clamp_min(0).sqrt()
    return _Moments(mean[0], deviation[0]), _Moments(mean[1], deviation[1])


def _by_channel(call: LayerCall, output: Tensor) -> Tensor:
    """Output of a layer as rows of channels."""
    axis = -1 - len(call.stride) if call.layer.kind == "conv" else -1
    return output.movedim(axis, -1).flatten(0, -2)


def _scaled(layer: StoredLayer, factors: Tensor) -> tuple[StoredLayer, Tensor]:
    """The layer with the steps of its channels times factors, as far as it has such, and what they became."""
    if shares_step(layer):
        return layer, torch.ones_like(factors)
    scaled = with_factors(layer, factors.float())
    # Steps of 16 bits do not take every factor; of several in a channel, what the channel takes in the mean.
    before, after = layer.dequantize().double(), scaled.dequantize().double()
    size = before.square().sum(1)
    return scaled, torch.where(size > 0, (before * after).sum(1) / size.where(size > 0, 1.0), factors)
