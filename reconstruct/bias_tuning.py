"""Bias tuning: all biases of the network together, by the loss of its output."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import InputError
from ..network import Data, LayerCall, Network, batch_size, float_logits, kl_divergence, widened
from .finalize import Finalized
from .held_out import learned_and_judged
from .network_loss import NetworkLoss, surely_less

__all__ = ["tune_biases"]

HELD_OUT = 1 / 4
CHECK_EVERY, PATIENCE = 25, 4
MOST_ITERATIONS = 10**7
LEAST_RATE, MOST_RATE = 1e-9, 1e3


def tune_biases(
    network: Network,
    data: Data,
    finalized: Finalized,
    seed: int = 0,
    *,
    iterations: int = 300,
    rate: float = 1e-2,
) -> Finalized:
    """Biases that minimise ``KL(float || quantized)``; the weights stay.

    Adam on ``bias + scale * v`` with scale the deviation of the layer's output, so that one rate fits all
    layers. Every 25 steps the loss is measured on the last quarter of the data, which is not learned from;
    the biases of least loss there are returned, if they are better than those given by more than chance, and
    learning stops when the last four measurements brought nothing. A bias that no slope reaches stays.

    Parameters
    ----------
    data : Data
        Calibration inputs.
    seed : int
        Of the order in which samples are drawn.
    iterations : int
        Steps of Adam at most.
    rate : float
        Learning rate, in deviations of a layer's output; falls to 0 along half a cosine.

    Raises
    ------
    InputError
        Iterations or a rate outside their range.

    References
    ----------
    Hubara et al., "Accurate post training quantization with small calibration sets", ICML 2021.
    """
    if not 1 <= iterations <= MOST_ITERATIONS:
        raise InputError(
            f"bias tuning has iterations {iterations}; it is between 1 and {MOST_ITERATIONS:,}, such as 300"
        )
    if not LEAST_RATE <= rate <= MOST_RATE:
        raise InputError(
            f"bias tuning has rate {rate:g}; it is between {LEAST_RATE:g} and {MOST_RATE:g}, such as 0.01"
        )
    start = {
        layer.bias: finalized.biases.get(layer.bias, network.tensors[layer.bias]).to(network.device)
        for layer in network.layers
        if layer.bias is not None
    }
    if not start:
        return finalized
    learned, judged = learned_and_judged(len(data.inputs), HELD_OUT)
    judge, fixed = NetworkLoss(network, data, judged), finalized.tensors(network)
    wide = network.widened()
    rounded = fixed if wide is network else finalized.tensors(wide)
    some = data.part(slice(learned.stop)).taken_by(wide)
    reference, scales = float_logits(wide, some), _output_scales(wide, some)
    # Adam divides by what is 0 in half precision.
    moves = {
        name: torch.zeros_like(bias, dtype=wide.outlines[name].dtype, requires_grad=True)
        for name, bias in start.items()
    }
    adam = torch.optim.Adam(moves.values(), lr=rate)
    generator = torch.Generator().manual_seed(seed)
    batch = batch_size(network)
    best, least, without_gain = dict[str, Tensor](), judge.of(fixed), 0
    for iteration in range(iterations):
        adam.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * iteration / iterations)) / 2
        index = torch.randint(len(some.inputs), (min(batch, len(some.inputs)),), generator=generator)
        moved = {name: widened(bias) for name, bias in _moved(start, moves, scales).items()}
        logits = wide.run(some.inputs[index].to(wide.device), tensors={**rounded, **moved})
        loss = kl_divergence(reference[index].to(network.device), logits).mean()
        if not loss.requires_grad:
            return finalized
        slopes = torch.autograd.grad(loss, list(moves.values()), materialize_grads=True)
        for move, slope in zip(moves.values(), slopes, strict=True):
            move.grad = slope
        adam.step()
        if (iteration + 1) % CHECK_EVERY == 0 or iteration + 1 == iterations:
            found = {name: bias.detach() for name, bias in _moved(start, moves, scales).items()}
            now = judge.of({**fixed, **found})
            without_gain = 0 if now < least else without_gain + 1
            if now < least:
                best, least = found, now
            if without_gain == PATIENCE:
                break
    gains = surely_less(judge.by_sample({**fixed, **best}), judge.by_sample(fixed))
    return replace(finalized, biases={**finalized.biases, **best}) if gains else finalized


def _moved(
    start: Mapping[str, Tensor], moves: Mapping[str, Tensor], scales: Mapping[str, float]
) -> dict[str, Tensor]:
    return {name: (bias + scales[name] * moves[name]).to(bias.dtype) for name, bias in start.items()}


def _output_scales(network: Network, data: Data) -> dict[str, float]:
    """Standard deviation of the outputs that each bias is added to, 1 where they do not vary."""
    scales: dict[str, float] = {}

    def watch(call: LayerCall, entering: Tensor, leaving: Tensor) -> Tensor:
        if call.layer.bias is not None and not call.is_lookup:
            scales[call.layer.bias] = float(leaving.std(correction=0)) or 1.0
        return leaving

    with torch.inference_mode():
        network.run(data.inputs[: batch_size(network)].to(network.device), on_layer=watch)
    return scales
