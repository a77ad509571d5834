"""What learns together: layers, blocks, stages or the network, and the data each learns from."""

from __future__ import annotations

import enum
from collections.abc import Sequence

import torch
from torch import Tensor

from ..network import (
    ACTIVATION_BATCH,
    Activations,
    Block,
    Layer,
    Network,
    different_samples,
    is_pointwise,
)
from .learn import UnitData
from .levels import level_weights
from .region import Region, region_between
from .streams import Streams

__all__ = ["Granularity", "joined_blocks", "output_size", "unit_data", "units_of"]


class Granularity(enum.StrEnum):
    """What learns together: a layer, a block, the blocks of one resolution, or the whole network."""

    LAYER = "layer"
    BLOCK = "block"
    STAGE = "stage"
    NETWORK = "network"


def joined_blocks(network: Network, blocks: Sequence[Block], granularity: Granularity) -> tuple[Block, ...]:
    """Blocks joined as far as they learn together.

    A stage is a run of blocks whose outputs have equally many values. At every granularity the blocks between
    two uses of a weight are one, so that its unit sees both.
    """
    size = {node.name: node.meta.get("elements") for node in network.graph.nodes}
    position = network.schedule.position
    open_until = 0
    joined: list[Block] = []
    for block in blocks:
        together = bool(joined) and (
            granularity is Granularity.NETWORK
            or (granularity is Granularity.STAGE and size[joined[-1].exit] == size[block.exit])
            or position[joined[-1].exit] < open_until
        )
        uses = [position[node] for layer in block.layers if not layer.lookups for node in layer.nodes]
        open_until = max([open_until, *uses])
        if together:
            last = joined.pop()
            joined.append(Block(last.entry, block.exit, (*last.layers, *block.layers)))
        else:
            joined.append(block)
    return tuple(joined)


def units_of(block: Block, granularity: Granularity) -> tuple[tuple[Layer, ...], ...]:
    """The layers of a block that learn together; those that look rows up come first, each alone."""
    alone = tuple((layer,) for layer in block.layers if layer.lookups)
    others = tuple(layer for layer in block.layers if not layer.lookups)
    if granularity is Granularity.LAYER:
        return (*alone, *((layer,) for layer in others))
    return (*alone, others) if others else alone


def unit_data(
    streams: Streams, block: Block, layers: Sequence[Layer], *, fisher: bool, seed: int
) -> tuple[Region, UnitData]:
    """The region that a unit is, and what it learns from.

    A unit of all the layers of a block that learn is the block. A single layer is the layer with the
    pointwise operations after it; where it is used several times, or the values there are no rows per sample,
    the block with that layer alone learning.
    """
    network, count = streams.network, len(streams.data.inputs)
    entry, exit_ = block.entry, block.exit
    if len(layers) < sum(not layer.lookups for layer in block.layers):
        entry, exit_ = _single(streams, layers[0]) or (entry, exit_)
    region = region_between(network, entry, exit_)
    quantized, floating = streams.quantized, streams.floating
    if entry != streams.entry:
        quantized, floating = streams.at(streams.region(entry))
    inputs = Activations(streams.data.inputs)

    def target(part: slice) -> Tensor:
        with torch.inference_mode():
            return region.run(streams.moved(floating, part), streams.inputs(part))

    leaving = streams.store.compute(count, target)
    importance = _fisher(streams, exit_, leaving, seed) if fisher else None
    if importance is None:
        importance = _levels(leaving, _channel_axis(network, exit_, layers))
    return region, UnitData(quantized, floating, leaving, importance, inputs)


def output_size(data: UnitData, samples: range) -> float:
    """Mean (weighted) square of a unit's output in the float network; 1 where that is zero."""
    index = torch.as_tensor(samples)
    square = data.target.take(index).float().square()
    if data.importance is not None:
        square *= data.importance.take(index)
    return float(square.mean(dtype=torch.float64)) or 1.0


def _single(streams: Streams, layer: Layer) -> tuple[str, str] | None:
    """Entry and exit of a layer and the pointwise operations after it; None where it cannot stand alone."""
    network = streams.network
    step = network.schedule.steps[network.schedule.position[layer.nodes[0]]]
    if step.source is None or len(layer.nodes) > 1:
        return None
    entry, exit_ = step.source, _after_pointwise(network, layer.nodes[0])
    first = network.schedule.inputs[0]
    pair = different_samples(streams.data.inputs).to(network.device)
    by_sample = all(region_between(network, first, name).is_by_sample(pair) for name in (entry, exit_))
    return (entry, exit_) if by_sample else None


def _after_pointwise(network: Network, name: str) -> str:
    node = next(node for node in network.graph.nodes if node.name == name)
    while len(node.users) == 1:
        (user,) = node.users
        sources = [source for source in user.all_input_nodes if source.op != "get_attr"]
        if sources != [node] or not is_pointwise(user):
            break
        node = user
    return str(node.name)


def _levels(leaving: Activations, channels: int | None) -> Activations | None:
    """Weights of the positions of what leaves a unit, see `level_weights`, one in place of all channels.

    None where it is not known which axis these are on.
    """
    values = leaving.values
    if channels is None or values.ndim < 2:
        return None
    parts = torch.split(values, ACTIVATION_BATCH)
    energy = torch.cat([part.float().square().sum(channels, keepdim=True) for part in parts])
    weights = level_weights(energy.flatten())
    return None if weights is None else Activations(weights.view_as(energy), leaving.folded)


def _channel_axis(network: Network, exit_: str, layers: Sequence[Layer]) -> int | None:
    """Axis, from the end, of the channels at a unit's exit.

    That of a layer from whose output pointwise operations lead there; None where none do, as behind a
    permutation.
    """
    own = {node: layer for layer in layers for node in layer.products}
    waiting, seen = [node for node in network.graph.nodes if node.name == exit_], set()
    while waiting:
        node = waiting.pop()
        if node.name in own:
            layer = own[node.name]
            return 1 - len(layer.shape) if layer.kind == "conv" else -1
        seen.add(node)
        if is_pointwise(node):
            waiting.extend(source for source in node.all_input_nodes if source not in seen)
    return None


def _fisher(streams: Streams, exit_: str, leaving: Activations, seed: int) -> Activations | None:
    """Squared derivatives of the log-probability of labels that the float network draws, mean 1.

    ``(d log p(y_n | x_n) / d z_n)^2`` with z the unit's output: one draw of the Fisher information's diagonal
    for each sample. One with slopes that are not finite, such as those of a root at zero, has ones. None
    where no slope reaches z.
    """
    if not leaving.values.is_floating_point():
        return None
    rest = region_between(streams.network, exit_, streams.network.schedule.output)
    generator = torch.Generator().manual_seed(seed)

    def squares(part: slice) -> Tensor:
        values = streams.moved(leaving, part).clone().requires_grad_()
        logits = rest.run(values, streams.inputs(part))
        if not logits.requires_grad:
            return torch.zeros_like(values, dtype=torch.float32)
        logs = logits.log_softmax(-1)
        draws = torch.multinomial(logs.detach().exp().flatten(0, -2).cpu(), 1, generator=generator)
        chosen = logs.flatten(0, -2).gather(1, draws.to(logs.device))
        (slope,) = torch.autograd.grad(chosen.sum(), values)
        return slope.float().square()

    found = streams.store.compute(len(leaving), squares)
    parts = torch.split(found.values, ACTIVATION_BATCH)
    means = torch.cat([part.flatten(1).mean(1, dtype=torch.float64) for part in parts])
    is_finite = means.isfinite()
    mean = means[is_finite].mean()
    if not mean > 0:
        return None
    found.values.div_(mean)
    found.values[~is_finite] = 1.0
    return found
