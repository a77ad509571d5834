"""The output of a network for all samples, batch by batch and within bounds of memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ..errors import InputError
from .activations import ActivationStore, empty_within
from .data import Data
from .layer import Layer
from .network import Network
from .schedule import Values
from .segments import cut_segments, kept_values
from .tensors import StreamedTensors

__all__ = ["BATCH", "batch_size", "batches", "finite_outputs", "float_logits", "outputs"]

BATCH = 64
BATCH_FLOATS = 2**26
"""Numbers of the largest value of a batch."""
LOGITS_BYTES = 2**30
SEGMENT_BYTES, KEPT_BYTES = 2**28, 2**29


def batches(count: int, size: int = BATCH) -> Iterator[slice]:
    """Slices that cut `count` samples into pieces of `size`."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def batch_size(network: Network) -> int:
    """Samples that are run at once: 64, fewer where a value of one has more than a million numbers."""
    largest: int = max(node.meta.get("elements", 0) for node in network.graph.nodes)
    return max(1, min(BATCH, BATCH_FLOATS // max(1, largest)))


def outputs(
    network: Network, inputs: Tensor, tensors: Mapping[str, Tensor] | None = None
) -> Iterator[Tensor]:
    """The output for all samples, batch after batch, on the CPU.

    Where tensors are streamed, each is read once for all batches: the network is run segment by segment.

    Parameters
    ----------
    tensors : mapping of str to Tensor, optional
        Tensors to use in place of those of the network.
    """
    size, used = batch_size(network), network.overlay(tensors)
    if not isinstance(used, StreamedTensors) or len(inputs) <= size:
        for part in batches(len(inputs), size):
            # Not around the yield: whoever reads the outputs is not in that mode.
            with torch.inference_mode():
                output = network.run(inputs[part].to(network.device), tensors=tensors)
            yield output.cpu()
        return
    yield from _by_segments(network, inputs, used, size)


def finite_outputs(network: Network, data: Data) -> Iterator[Tensor]:
    """`outputs` of the float network, refused where they are not finite.

    Raises
    ------
    InputError
        The network's own output is NaN or infinite.
    """
    for logits in outputs(network, data.inputs):
        if not bool(torch.isfinite(logits).all()):
            raise InputError(
                f"the float network's output on data '{data.name}' is NaN or infinite; check its weights and "
                "that the inputs are scaled as in training"
            )
        yield logits


def float_logits(network: Network, data: Data) -> Tensor:
    """Output of the float network for every sample, on the CPU; in a file where it is larger than 1 GiB.

    Raises
    ------
    InputError
        The network's own output is NaN or infinite.
    """
    whole: Tensor | None = None
    done = 0
    for logits in finite_outputs(network, data):
        if whole is None:
            whole = empty_within(LOGITS_BYTES, (len(data.inputs), *logits.shape[1:]), logits.dtype)
        whole[done : done + len(logits)] = logits
        done += len(logits)
    assert whole is not None
    return whole


def _by_segments(
    network: Network, inputs: Tensor, tensors: Mapping[str, Tensor], size: int
) -> Iterator[Tensor]:
    schedule, segments = network.schedule, cut_segments(network, _spans(network.layers))
    running: list[Values] = [schedule.start([inputs[part]]) for part in batches(len(inputs), size)]
    with ActivationStore(KEPT_BYTES) as store:
        for segment in segments:
            for at, values in enumerate(running):
                here = {
                    name: value.to(network.device) if isinstance(value, Tensor) else value
                    for name, value in values.items()
                }
                running[at] = values = {}
                with torch.inference_mode():
                    schedule.advance(here, tensors, segment.begin, segment.end)
                if segment is segments[-1]:
                    yield here[schedule.output].cpu()
                else:
                    running[at] = kept_values(here, store)


def _spans(layers: Sequence[Layer]) -> list[list[Layer]]:
    """Consecutive layers whose weights fit into the memory of a segment, at least one layer each."""
    spans: list[list[Layer]] = [[]]
    filled = 0
    for layer in layers:
        size = 4 * layer.channels * layer.fan_in
        if spans[-1] and filled + size > SEGMENT_BYTES:
            spans.append([])
            filled = 0
        spans[-1].append(layer)
        filled += size
    return spans
