"""The sums that Fisher scores are made of, from one way forward and one back through the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..network import SAMPLES_FIRST, ActivationStore, Layer, Network, SampleAxis, Segment
from .candidates import cut_of
from .folding import fold, row_count
from .labels import Labels, draw_directions
from .projections import by_sample, project_strips
from .store import SegmentStore
from .subsample import Chosen
from .sweep import CARRIED, Cotangents, LayerUse, Sweep

__all__ = ["FisherPass"]


@dataclass(frozen=True, eq=False)
class FisherPass:
    """What is scored, and how.

    Attributes
    ----------
    network : Network
        At which the Fisher information is taken.
    segments : sequence of Segment
    chunks : sequence of Chosen
        The samples, cut into those that are run at once.
    positions : int
        Positions (tokens) of a sample's output, which are drawn independently.
    perturbations : callable
        From a layer to what its options change, (channels, options, fan_in).
    axes : mapping of str to SampleAxis
        Where the samples are in what enters and leaves layers, by node, if not first.
    cut : str or None
        How linear layers are cut into strips.
    labels, draws, seed
        See `FisherSettings`.
    factor_rows : int
        Most rows of the folded projections; 0 keeps none.
    kept_bytes : int
        What the values and cotangents between segments may hold in memory.
    """

    network: Network
    segments: Sequence[Segment]
    chunks: Sequence[Chosen]
    positions: int
    perturbations: Callable[[Layer], Tensor]
    axes: Mapping[str, SampleAxis]
    cut: str | None
    labels: Labels
    draws: int
    seed: int
    factor_rows: int
    kept_bytes: int

    @property
    def count(self) -> int:
        """Number of samples."""
        return sum(len(chunk.index) for chunk in self.chunks)

    def run(
        self,
        inputs: Tensor,
        stores: list[SegmentStore],
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Fill the stores, one for each segment, with all that they miss."""
        last = _first_to_do(stores, self.count)
        if last < 0:
            return
        with ActivationStore(self.kept_bytes) as held:
            sweep = Sweep(self.network, self.segments, [inputs[chunk.index] for chunk in self.chunks], held)
            sweep.forward(last)
            for number in reversed(range(last + 1)):
                self._fill(sweep, number, stores, on_progress)
                sweep.drop(number)

    def _fill(
        self,
        sweep: Sweep,
        number: int,
        stores: list[SegmentStore],
        on_progress: Callable[[int, int], None] | None,
    ) -> None:
        kept, after = stores[number], stores[number + 1] if number + 1 < len(stores) else None
        segment = self.segments[number]
        deltas = {layer.name: self.perturbations(layer) for layer in (*segment.layers, *segment.again)}
        for at in range(kept.chunks, len(self.chunks)):
            chunk, first = self.chunks[at], kept.samples

            def drawn(logits: Tensor, chunk: Chosen = chunk) -> Cotangents:
                directions = draw_directions(logits, self.labels, self.draws, self.seed, chunk.index.tolist())
                return [{self.network.schedule.output: direction} for direction in directions]

            leaving = None if after is None else after.entering[at]
            found = sweep.back(number, at, drawn if leaving is None else leaving)
            entering = found.entering
            effects = self._effects(found.uses, deltas, leaving or [], len(chunk.index))
            for draw, cotangents_ in enumerate(entering):
                for name, effect in effects.items():
                    if name not in {layer.name for layer in segment.layers}:
                        cotangents_[CARRIED + name] = sweep.store.keep(effect[:, :, draw])
            kept.add(*self._sums([effects[layer.name] for layer in segment.layers], chunk, first), entering)
            if on_progress is not None:
                done = (len(stores) - 1 - number) * self.count + kept.samples
                on_progress(done, len(stores) * self.count)
        kept.close()
        if after is not None:
            after.drop_entering()

    def _effects(
        self, uses: Sequence[LayerUse], deltas: dict[str, Tensor], leaving: Cotangents, samples: int
    ) -> dict[str, Tensor]:
        """Effect of every option on the output, (strips, samples, draws, options), by layer.

        Of the layers used in a segment, and of those that are used behind it and first before it.
        """
        later = {name for name in (leaving[0] if leaving else {}) if name.startswith(CARRIED)}
        totals = {
            name.removeprefix(CARRIED): torch.stack([draw[name] for draw in leaving], 2).to(
                self.network.device
            )
            for name in later
        }
        for use in uses:
            # Networks in other floats than the perturbations' are welcome.
            axis = self.axes.get(use.call.node, SAMPLES_FIRST)
            received = [
                by_sample(use.call, gradient.to(torch.float32), samples, axis) for gradient in use.received
            ]
            with torch.inference_mode():
                name, strips = use.call.layer.name, cut_of(use.call.layer, self.cut)
                entering = by_sample(use.call, use.entering.to(torch.float32), samples, axis)
                effect = project_strips(use.call, entering, received, deltas[name], strips)
            # Not an inference tensor: it may be kept.
            totals[name] = totals[name] + effect if name in totals else effect.clone()
        return totals

    def _sums(
        self, effects: Sequence[Tensor], chosen: Chosen, first: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """What a chunk adds to the store of a segment, see `SegmentStore.add`."""
        # The mean over positions (tokens), which are drawn independently.
        scale = (chosen.weight / self.positions).sqrt().to(self.network.device, torch.float32)
        effects = [effect * scale[:, None, None] for effect in effects]
        layers = torch.stack([effect.sum(0) for effect in effects], 2)
        losses = [effect.square().sum(2).double() / 2 for effect in effects]
        total = torch.cat([loss.sum(1) for loss in losses])
        square = torch.cat([loss.square().sum(1) for loss in losses])
        if self.factor_rows == 0:
            return layers.cpu(), total.cpu(), square.cpu(), None
        rows = row_count(self.count, layers.shape[1], self.factor_rows)
        return layers.cpu(), total.cpu(), square.cpu(), fold(effects, first, rows, self.seed)


def _first_to_do(stores: list[SegmentStore], count: int) -> int:
    """The last segment that is not done, ready to go on; -1 when all are.

    A segment whose own cotangents are lost begins anew; where those of the one after it are, all do.
    """
    number = len(stores) - 1
    while number >= 0 and stores[number].samples == count:
        number -= 1
    if number < 0:
        return number
    if number + 1 < len(stores) and not stores[number + 1].load_entering():
        stores[:] = [store.emptied() for store in stores]
        return len(stores) - 1
    if not stores[number].load_entering():
        stores[number] = stores[number].emptied()
    return number
