"""How much an error at each position of what a layer computes, a token or a pixel, does to the output."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..network import (
    ACTIVATION_BATCH,
    SAMPLES_FIRST,
    Data,
    LayerCall,
    Network,
    SampleAxis,
    batches,
    fingerprint,
    sample_axes,
)

__all__ = ["position_weights"]

FLOOR = 0.3
"""What a position counts at least, in units of the mean: where the output depends on one token in two
hundred, as in the last block of a ViT, that token of a few samples alone says too little."""
BATCH_NUMBERS = 2**26
"""Numbers of a batch that wait for their slopes; one sample may have more."""


def position_weights(network: Network, data: Data) -> dict[str, Tensor]:
    """Weights of the positions of what every use of a layer computes.

    With z_t the output channels at a position t of a sample x and y a label that the float network draws,

        w_t = F + (1 - F) g_t / mean_t g_t,    g_t = mean_c (d log p(y | x) / d z_tc)^2,    F = 0.3,

    so that a squared error weighted so is, but for the floor F, what the Fisher information of positions
    makes of it. Every sample counts the same: one of which the network is sure has slopes near zero
    everywhere, and the few others would be all that is fitted to.

    They are computed once for a network and data, by one pass forward and back, and kept as long as the
    network is: two bytes for each position of each sample and layer.

    Returns
    -------
    dict of str to Tensor, shape (samples, positions), float16
        By name of the layer's node; each sample's mean is 1, and a sample whose slopes are zero or not finite
        has ones. Uses whose samples lie on no known axis or that no slope reaches are left out, and of a
        network whose weights are streamed, all.

    References
    ----------
    Kim et al., "GuidedQuant: large language model quantization via exploiting end loss guidance", ICML 2025,
    weighs the tokens in GPTQ's Gram matrices by such slopes, of the loss on given labels.
    """
    if network.is_streamed:
        return {}
    of = f"{fingerprint(network.tensors)} {fingerprint({'inputs': data.inputs})}"
    known = _known.get(network)
    if known is None or known[0] != of:
        known = _known[network] = of, _measured(network, data)
    return known[1]


_known: WeakKeyDictionary[Network, tuple[str, dict[str, Tensor]]] = WeakKeyDictionary()


def _measured(network: Network, data: Data) -> dict[str, Tensor]:
    network = network.widened()
    data = data.taken_by(network)
    axes, inputs = sample_axes(network, data), data.inputs
    elements = sum(int(node.meta.get("elements") or 0) for node in network.graph.nodes)
    generator = torch.Generator().manual_seed(0)
    parts: dict[str, list[Tensor]] = {}
    with torch.inference_mode(False), torch.enable_grad():
        for part in batches(len(inputs), min(ACTIVATION_BATCH, max(1, BATCH_NUMBERS // max(1, elements)))):
            # A copy: inputs may have been made where no slopes are kept.
            given = inputs[part].to(network.device, copy=True)
            for call, slope in _slopes(network, given, generator):
                found = _weights(call, slope, axes.get(call.node, SAMPLES_FIRST), len(given))
                if found is not None:
                    # One of very many positions may have all the slope.
                    found = found.clamp(max=torch.finfo(torch.float16).max)
                    parts.setdefault(call.node, []).append(found.half().cpu())
    whole = {name: torch.cat(each) for name, each in parts.items()}
    return {name: weights for name, weights in whole.items() if len(weights) == len(inputs)}


def _slopes(network: Network, inputs: Tensor, generator: torch.Generator) -> list[tuple[LayerCall, Tensor]]:
    """Derivatives of the log-probability of drawn labels by what every use of a layer computes."""
    moved: list[tuple[LayerCall, Tensor]] = []

    def watch(call: LayerCall, entering: Tensor, leaving: Tensor) -> Tensor:
        if call.is_lookup:
            return leaving
        moved.append((call, torch.zeros_like(leaving, requires_grad=True)))
        return leaving + moved[-1][1]

    logits = network.run(inputs, on_layer=watch)
    if not logits.requires_grad:
        return []
    p = logits.detach().float().softmax(-1)
    # What is not finite is refused where it is measured.
    p = p.where(p.isfinite(), 1 / p.shape[-1])
    labels = torch.multinomial(p.flatten(0, -2).cpu(), 1, generator=generator).to(p.device)
    direction = (-p.flatten(0, -2)).scatter_add(1, labels, p.new_ones(labels.shape)).view_as(p)
    # A sample's weights are relative, and 16 bits do not hold the slopes of one of which the network is sure.
    size = direction.flatten(1).norm(dim=1).view(-1, *[1] * (p.ndim - 1))
    direction = torch.where(size > 0, direction / size, direction).to(logits.dtype)
    slopes = torch.autograd.grad(logits, [each for _, each in moved], direction, allow_unused=True)
    return [(call, slope) for (call, _), slope in zip(moved, slopes, strict=True) if slope is not None]


def _weights(call: LayerCall, slope: Tensor, axis: SampleAxis, samples: int) -> Tensor | None:
    """The weights of a batch, (samples, positions); None where its samples cannot be told apart."""
    energy = slope.float().square().mean(1 if call.stride else -1, keepdim=True)
    by_sample = axis.first(energy, samples)
    if by_sample is None:
        return None
    energy = by_sample.reshape(samples, -1)
    mean = energy.mean(1, keepdim=True)
    return torch.where((mean > 0) & mean.isfinite(), FLOOR + (1 - FLOOR) * energy / mean, 1.0)
