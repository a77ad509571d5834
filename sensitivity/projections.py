"""First-order effect of every option of a layer on an output direction, sample by sample.

For a layer with weight W, an option's perturbation dW(o) and a cotangent g of the layer's output,

    v[n, r, c, o] = < dz_r / dW[c] at sample n , dW(o)[c] >

Two equal ways to form it, of which the cheaper is taken: the per-sample weight gradient times all dW(o)
in one product (its cost hardly depends on the number of options), or the layer applied with all dW(o)
stacked as output channels, times the cotangent (cheap where the output has few positions).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..allocator import LayerCut
from ..errors import InputError
from ..network import SAMPLES_FIRST, Layer, LayerCall, SampleAxis
from .lookups import project_lookups

__all__ = ["by_sample", "project", "project_strips"]

# Unfolded inputs and per-sample gradients are handled in pieces that stay near the processor's cache.
UNFOLDED_FLOATS = 2**20
GRADIENT_FLOATS = 2**22


def by_sample(call: LayerCall, values: Tensor, samples: int, axis: SampleAxis = SAMPLES_FIRST) -> Tensor:
    """What enters or leaves a linear layer with the samples as first axis.

    Networks fold tokens into the axis of samples before a mixture of experts, or windows of an image; these
    are unfolded into an axis of their own.

    Parameters
    ----------
    axis : SampleAxis
        Where the samples are.

    Raises
    ------
    InputError
        The axis of the samples is no multiple of them; names the layer.
    """
    found = axis.first(values, samples)
    if found is None or (call.layer.kind == "conv" and len(values) != samples):
        raise InputError(
            f"layer '{call.layer.name}': for {samples} samples its axis {axis.axis} has "
            f"{values.shape[axis.axis]}, so what it does to one of them is not known; leave it out with "
            "--exclude, or use --scores exact"
        )
    return found


def project(
    layer: Layer, call: LayerCall, inputs: Tensor, cotangents: Sequence[Tensor], deltas: Tensor
) -> Tensor:
    """v of one use of a layer.

    Parameters
    ----------
    inputs : Tensor
        What enters the layer: (samples, ..., features) or (samples, channels, *space).
    cotangents : sequence of Tensor
        Of the layer's output, one per draw; kept apart, for copying them together would cost a pass over
        memory.
    deltas : Tensor, shape (channels, options, fan_in)

    Returns
    -------
    Tensor, shape (channels, samples, draws, options)
    """
    draws, samples = len(cotangents), len(inputs)
    channels, options, fan_in = deltas.shape
    if inputs.numel() == 0:
        # An expert that no sample of these reaches.
        return inputs.new_zeros(channels, samples, draws, options)
    if layer.kind == "conv":
        outgoing = [cotangent.flatten(2) for cotangent in cotangents]
    else:
        outgoing = [cotangent.reshape(samples, -1, channels).transpose(1, 2) for cotangent in cotangents]
        inputs = inputs.reshape(samples, -1, fan_in)
    positions = outgoing[0].shape[2]
    by_gradient = draws * (positions + options)
    by_output = options * (positions + draws * positions / fan_in)
    form = _through_gradient if by_gradient <= by_output else _through_output
    piece = max(1, UNFOLDED_FLOATS // (positions * fan_in * layer.groups))
    result = inputs.new_empty(channels, samples, draws, options)
    for start in range(0, samples, piece):
        part = slice(start, start + piece)
        rows = _unfold(layer, call, inputs[part])
        form(rows, [each[part] for each in outgoing], deltas, result[:, part])
    return result


def project_strips(
    call: LayerCall, inputs: Tensor, cotangents: Sequence[Tensor], deltas: Tensor, cut: LayerCut
) -> Tensor:
    """v of every strip of one use of a layer: of its channels, or of runs of inputs over all channels.

    A run of inputs takes part with its slice of the inputs and of the perturbations, summed over channels,
    so that strips add up to the layer as channels do.

    Parameters
    ----------
    inputs, cotangents, deltas
        As for `project`.

    Returns
    -------
    Tensor, shape (strips, samples, draws, options)
    """
    if call.is_lookup:
        return project_lookups(inputs, cotangents, deltas, cut)
    if not cut.inputs:
        return project(call.layer, call, inputs, cotangents, deltas)
    runs = [slice(start, start + cut.inputs) for start in range(0, cut.fan_in, cut.inputs)]
    return torch.stack(
        [project(call.layer, call, inputs[..., run], cotangents, deltas[..., run]).sum(0) for run in runs]
    )


def _unfold(layer: Layer, call: LayerCall, inputs: Tensor) -> Tensor:
    """The inputs that meet one output position: (samples, groups, fan_in, positions)."""
    if layer.kind != "conv":
        return inputs.transpose(1, 2)[:, None]
    kernel = layer.shape[2:]
    pads = [side for pair in reversed(call.padding) for side in pair]
    windows = torch.nn.functional.pad(inputs, pads)
    rank = len(kernel)
    for axis in range(rank):
        reach = call.dilation[axis] * (kernel[axis] - 1) + 1
        windows = windows.unfold(2 + axis, reach, call.stride[axis])[..., :: call.dilation[axis]]
    # (samples, channels, *positions, *kernel) -> (samples, channels, *kernel, *positions)
    space, window = range(2, 2 + rank), range(2 + rank, 2 + 2 * rank)
    windows = windows.permute(0, 1, *window, *space)
    return windows.reshape(len(inputs), layer.groups, layer.fan_in, -1)


def _through_gradient(rows: Tensor, outgoing: Sequence[Tensor], deltas: Tensor, result: Tensor) -> None:
    samples, groups, fan_in, _ = rows.shape
    per_group = len(deltas) // groups
    # A piece of every group's channels, so that the gradients of one piece are bounded.
    step = max(1, min(per_group, GRADIENT_FLOATS // (samples * groups * fan_in)))
    grouped_deltas = deltas.view(groups, per_group, *deltas.shape[1:]).transpose(2, 3)
    grouped_result = result.view(groups, per_group, *result.shape[1:])
    columns = rows.transpose(2, 3)
    for draw, cotangent in enumerate(outgoing):
        grouped = cotangent.reshape(samples, groups, per_group, -1)
        for start in range(0, per_group, step):
            part = slice(start, start + step)
            # (samples, groups, channels, fan_in), then one product per channel over all samples
            gradient = (grouped[:, :, part] @ columns).permute(1, 2, 0, 3)
            grouped_result[:, part, :, draw] = gradient @ grouped_deltas[:, part]


def _through_output(rows: Tensor, outgoing: Sequence[Tensor], deltas: Tensor, result: Tensor) -> None:
    samples, groups, _, positions = rows.shape
    channels, options, _ = deltas.shape
    grouped = deltas.reshape(groups, channels // groups * options, -1)
    outputs = (grouped @ rows).view(samples, channels, options, positions)
    for draw, cotangent in enumerate(outgoing):
        result[:, :, draw] = (outputs @ cotangent[..., None])[..., 0].transpose(0, 1)
