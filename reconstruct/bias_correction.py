"""Closed-form bias correction: take back the mean shift that rounding the weights causes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..network import Data, LayerCall, Network, batches
from .finalize import Finalized

__all__ = ["correct_biases"]

BATCH = 64


def correct_biases(network: Network, data: Data, finalized: Finalized) -> Finalized:
    """Biases that keep every layer's mean output.

    With x the layer's inputs in the float network,

        bias'[c] = bias[c] - mean_{n, positions} ( (W_q - W) * x_n )[c]

    which, the layer being linear, needs only the mean input. Layers without a bias are left as they are.

    Parameters
    ----------
    data : Data
        Calibration inputs.

    References
    ----------
    Nagel et al., "Data-free quantization through weight equalization and bias correction", ICCV 2019,
    section 4.2 (the empirical form).
    """
    changed = finalized.tensors(network)
    totals: dict[str, tuple[LayerCall, Tensor]] = {}

    def add(call: LayerCall, entering: Tensor, leaving: Tensor) -> Tensor:
        if call.layer.bias is not None and not call.is_lookup:
            total = entering.sum(0, keepdim=True)
            before = totals.get(call.node)
            totals[call.node] = (call, total if before is None else before[1] + total)
        return leaving

    with torch.inference_mode():
        for part in batches(len(data.inputs), BATCH):
            network.run(data.inputs[part].to(network.device), on_layer=add)
        biases = dict(finalized.biases)
        for layer in network.layers:
            bias = network.bias(layer)
            if bias is None or layer.bias is None:
                continue
            delta = changed[layer.weight] - network.weight(layer)
            shifts = [_mean_output(*totals[node], delta, len(data.inputs)) for node in layer.products]
            biases[layer.bias] = bias - torch.stack(shifts).mean(0)
    return replace(finalized, biases=biases)


def _mean_output(call: LayerCall, total: Tensor, delta: Tensor, samples: int) -> Tensor:
    """Mean over samples and positions of the layer's output with weight `delta`, shape (channels,)."""
    mean = total / samples
    if call.layer.kind != "conv":
        features = mean.flatten(0, -2).mean(0)
        return features @ (delta if call.layer.transposed else delta.T)
    padded = torch.nn.functional.pad(mean, [side for pair in reversed(call.padding) for side in pair])
    rank = len(call.stride)
    output = torch.convolution(
        padded, delta, None, call.stride, [0] * rank, call.dilation, False, [0] * rank, call.groups
    )
    return output[0].flatten(1).mean(1)
