"""Closed-form bias correction: take back the mean shift that rounding the weights causes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..network import Data, LayerCall, Network, batch_size, batches
from .finalize import Finalized

__all__ = ["correct_biases"]


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
    totals: dict[str, tuple[LayerCall, Tensor, int]] = {}

    def add(call: LayerCall, entering: Tensor, leaving: Tensor) -> Tensor:
        if call.layer.bias is not None and not call.is_lookup:
            # Tokens may be folded into the first axis, or come before the samples.
            rows = entering if call.layer.kind == "conv" else entering.flatten(0, -2)
            total, count = rows.sum(0, keepdim=True), len(rows)
            if call.node in totals:
                _, before, counted = totals[call.node]
                total, count = before + total, counted + count
            totals[call.node] = call, total, count
        return leaving

    with torch.inference_mode():
        for part in batches(len(data.inputs), batch_size(network)):
            network.run(data.inputs[part].to(network.device), on_layer=add)
        biases = dict(finalized.biases)
        for layer in network.layers:
            bias = network.bias(layer)
            if bias is None or layer.bias is None:
                continue
            delta = changed[layer.weight] - network.weight(layer)
            shifts = [_mean_output(*totals[node], delta) for node in layer.products]
            biases[layer.bias] = bias - torch.stack(shifts).mean(0)
    return replace(finalized, biases=biases)


def _mean_output(call: LayerCall, total: Tensor, count: int, delta: Tensor) -> Tensor:
    """Mean over samples and positions of the layer's output with weight `delta`, shape (channels,).

    `total` is the sum of `count` samples of a convolution's inputs, or of rows of a linear layer's.
    """
    # An expert that is never chosen has no rows.
    mean = total / max(count, 1)
    if call.layer.kind != "conv":
        return mean[0] @ (delta if call.layer.transposed else delta.T)
    padded = torch.nn.functional.pad(mean, [side for pair in reversed(call.padding) for side in pair])
    rank = len(call.stride)
    output = torch.convolution(
        padded, delta, None, call.stride, [0] * rank, call.dilation, False, [0] * rank, call.groups
    )
    return output[0].flatten(1).mean(1)
