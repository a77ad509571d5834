"""AdaRound and BRECQ: learned rounding, unit after unit along the network."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ..allocator import Plan
from ..errors import InputError, NotFiniteError
from ..network import (
    ActivationStore,
    Block,
    Data,
    Layer,
    Network,
    activation_entries,
    activation_key,
    rows,
)
from .finalize import Finalized, StoredLayer, finalize_nearest, value_tensors
from .gptq import Gptq, gptq_next
from .grids import LayerGrid
from .held_out import check_held_out, learned_and_judged
from .learn import Learning, learn_rounding, output_error
from .method import Progress, walk_of
from .region import Region
from .streams import Streams, walkable_blocks
from .unit_store import UnitStore
from .units import Granularity, joined_blocks, output_size, unit_data, units_of

__all__ = ["LearnedRounding", "UnitReport"]


@dataclass(frozen=True)
class UnitReport:
    """What learning did for one unit.

    Attributes
    ----------
    layers : tuple of str
    start_error, learned_error : float
        (Weighted) squared error of the unit's output on the held-out part of the calibration data, relative
        to the (weighted) square of the output itself.
    kept : bool
        Whether the learned rounding was better and is kept.
    iterations : int
        0 where nothing was learned: the start was so good, or no slope reaches the weights.
    unsettled : float
        Share of the weights that had come to neither of their two values when the iterations ended, and were
        rounded then: where it is large, more of them help.
    seconds : float
    """

    layers: tuple[str, ...]
    start_error: float
    learned_error: float
    kept: bool
    iterations: int
    unsettled: float
    seconds: float


OnUnit = Callable[[UnitReport], None]
# A unit whose output is off by less than this share is left as it starts: 8 bits are.
NEGLIGIBLE = 1e-4


@dataclass(frozen=True)
class LearnedRounding:
    """Settings of learned rounding.

    Beyond what was published, the steps of every output channel learn one factor with the rounding of its
    weights; a `learning` with ``step_rate=0`` leaves them.

    Parameters
    ----------
    granularity : Granularity
        ``layer`` is AdaRound, the others BRECQ's.
    start : Gptq or None
        Where learning starts, and what it must beat; None: rounding to nearest. A unit that does not beat it
        is as `start` makes it from all of the calibration data.
    fisher : bool
        Weigh the error of a unit's output by the diagonal of the Fisher information there; else positions
        of outlying energy count less, see `level_weights`, and all others the same.
    all_points : bool
        Learn which of two neighbouring sums of points a weight takes; else the rounding of the last point
        alone, and the earlier points stay.
    held_out : float
        Share of the calibration data that is not learned from, on which learned rounding must beat the
        start to be kept.
    memory_bytes : int
        Bound on the activations that are kept in memory.
    learning : Learning

    Raises
    ------
    InputError
        A share outside its range.

    References
    ----------
    Nagel et al., "Up or down? Adaptive rounding for post-training quantization", ICML 2020.
    Li et al., "BRECQ: pushing the limit of post-training quantization by block reconstruction", ICLR 2021.
    """

    granularity: Granularity = Granularity.BLOCK
    start: Gptq | None = field(default_factory=Gptq)
    fisher: bool = False
    all_points: bool = True
    held_out: float = 1 / 16
    memory_bytes: int = 2**31
    learning: Learning = field(default_factory=Learning)

    def __post_init__(self) -> None:
        check_held_out("learned rounding", self.held_out)
        if self.start is not None and not self.start.sequential:
            raise InputError("learned rounding starts from GPTQ on quantized inputs; leave sequential set")

    def finalize(
        self,
        network: Network,
        plan: Plan,
        data: Data,
        progress: Progress | None = None,
        store: Path | None = None,
        on_unit: OnUnit | None = None,
    ) -> Finalized:
        """Integer weights of a plan, with steps of their own, those of activations too.

        Parameters
        ----------
        data : Data
            Calibration inputs.
        progress : callable, optional
            Told (units done, units in all); where `Gptq.confirmed` tries, the last third of what is told.
        store : Path, optional
            Folder for finished units, from which an interrupted run goes on to the same result.
        on_unit : callable, optional
            Told what came of each unit that is learned now.

        Raises
        ------
        InputError
            The plan does not fit the network, or the network has several inputs.
        """
        start = self.start
        if start is not None:
            trials = start.trials(plan, data)
            start = start.confirmed(network, plan, data, store, progress)
            progress = walk_of(progress, trials, trials + 1)
        if start != self.start:
            return replace(self, start=start).finalize(network, plan, data, progress, store, on_unit)
        kept = UnitStore.of(store, self, network, plan, data)
        rounded = finalize_nearest(network, plan)
        done = {layer.name: layer for layer in rounded.layers}
        values = dict(rounded.values)
        for report, count, total in self._walk(network, data, done, values, kept):
            if progress is not None:
                progress(count, total)
            if on_unit is not None and report is not None:
                on_unit(report)
        return Finalized(tuple(done[layer.name] for layer in network.layers), values=values)

    def _walk(
        self,
        network: Network,
        data: Data,
        done: dict[str, StoredLayer],
        values: dict[str, Tensor],
        kept: UnitStore,
    ) -> Iterator[tuple[UnitReport | None, int, int]]:
        """Learn unit after unit into `done` and `values`.

        Yields what came of each, None where it was kept, and how far.
        """
        with ActivationStore(self.memory_bytes) as activations:
            known = value_tensors(values)
            network = network.widened()
            data = data.taken_by(network)
            streams = Streams(network, data, activations, with_float=True, replaced=known)
            blocks = joined_blocks(network, walkable_blocks(network, data), self.granularity)
            total = sum(len(units_of(block, self.granularity)) for block in blocks)
            count = 0
            for block in blocks:
                streams.advance(block.entry)
                for layers in units_of(block, self.granularity):
                    report = None
                    found = kept.load(count, [done[layer.name] for layer in layers])
                    if found is None:
                        report, found = self.learn_unit(streams, block, layers, done, count)
                        kept.save(count, found.layers, values=found.values)
                    else:
                        streams.replaced |= value_tensors(found.values)
                        for layer, stored in zip(layers, found.layers, strict=True):
                            streams.replace(layer, stored)
                    done.update({stored.name: stored for stored in found.layers})
                    values |= found.values
                    count += 1
                    yield report, count, total

    def learn_unit(
        self,
        streams: Streams,
        block: Block,
        layers: Sequence[Layer],
        nearest: Mapping[str, StoredLayer],
        number: int,
    ) -> tuple[UnitReport | None, Finalized]:
        """Learn one unit, which joins the quantized network: its layers, and what quantizes its values.

        There is no report of a layer that looks rows up, which stays as it starts: the nearest code is the
        best for a row alone, and where it also multiplies, a unit sees one of its uses only.

        Parameters
        ----------
        streams : Streams
            With the float network's values too, and the cut at the entry of the block.
        block, layers
            The unit: all layers of the block, or one of them.
        nearest : mapping of str to StoredLayer
            Its layers as nearest rounding stores them.
        number : int
            Of the unit, for the draws.

        Returns
        -------
        report : UnitReport or None
        unit : Finalized
            Its layers alone.

        Raises
        ------
        NotFiniteError
            The unit's output, or its square, is NaN or infinite.
        """
        began = time.perf_counter()
        network = streams.network
        before = dict(streams.replaced)
        seen, judged_on = learned_and_judged(len(streams.data.inputs), self.held_out)
        learned_from = seen.stop
        rounded = [nearest[layer.name] for layer in layers]
        if layers[0].lookups:
            return None, Finalized(self._begun(streams, layers, rounded, len(streams.data.inputs)))
        starts = self._begun(streams, layers, rounded, learned_from)
        started = dict(streams.replaced)
        streams.replaced = before
        region, data = unit_data(streams, block, layers, fisher=self.fisher, seed=self.learning.seed)
        size = output_size(data, judged_on)
        start_error = output_error(region, data, started, judged_on) / size
        if not (math.isfinite(size) and math.isfinite(start_error)):
            raise NotFiniteError(
                f"what leaves layer '{layers[-1].name}' on data '{streams.data.name}' is NaN or infinite, or "
                "too large to be squared; check that the inputs are scaled as in training, or give that "
                "layer and those before it more bits"
            )
        learned, error = None, start_error
        if start_error > NEGLIGIBLE:
            brackets = [
                LayerGrid(stored).bracket(rows(layer, network.weight(layer)), sums=self.all_points)
                for layer, stored in zip(layers, starts, strict=True)
            ]
            learned = learn_rounding(
                region,
                data,
                layers,
                brackets,
                before,
                learned_from,
                start_error * size,
                self.learning,
                torch.Generator().manual_seed(self.learning.seed + number),
                _learnable(region, before) if self.learning.step_rate else (),
            )
            if learned is not None:
                streams.replaced = before | learned.values
                for layer, stored in zip(layers, learned.layers, strict=True):
                    streams.replace(layer, stored)
                error = output_error(region, data, streams.replaced, judged_on) / size
        kept = learned is not None and error < start_error
        report = UnitReport(
            layers=tuple(layer.name for layer in layers),
            start_error=start_error,
            learned_error=error,
            kept=kept,
            iterations=learned.iterations if learned is not None else 0,
            unsettled=learned.unsettled if learned is not None else 0.0,
            seconds=time.perf_counter() - began,
        )
        if learned is not None and kept:
            return report, Finalized(learned.layers, values=activation_entries(learned.values))
        # What judged the unit is no longer needed for that.
        streams.replaced = before
        return report, Finalized(self._begun(streams, layers, rounded, len(streams.data.inputs)))

    def _begun(
        self, streams: Streams, layers: Sequence[Layer], nearest: Sequence[StoredLayer], samples: int
    ) -> tuple[StoredLayer, ...]:
        """The layers of a unit without learning, from the first samples; they join the network."""
        if self.start is not None:
            return tuple(
                gptq_next(streams, layer, stored, self.start, samples)
                for layer, stored in zip(layers, nearest, strict=True)
            )
        for layer, stored in zip(layers, nearest, strict=True):
            streams.replace(layer, stored)
        return tuple(nearest)


def _learnable(region: Region, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names of what quantizes the values that a region computes, as far as they have one range."""
    computed = region.network.schedule.position
    return tuple(
        activation_key(value)
        for value, entry in activation_entries(tensors).items()
        if value in computed and len(entry) > 1
    )
