"""GPTQ: round column after column, and let the columns to come make up for each error."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..allocator import Plan
from ..errors import InputError, NotFiniteError
from ..network import ActivationStore, Data, Layer, Network, float_logits, measure_samples, rows
from .cells import chosen_channels, sums_of_sharing, with_steps
from .damping import confirmed_damping
from .finalize import Finalized, NearestLayers, StoredLayer, value_tensors
from .float_target import aimed_weight
from .gram import InputGram, factored
from .grids import LayerGrid
from .held_out import learned_and_judged, typical_ratio
from .layer_inputs import check_positions, input_gram
from .method import Progress, walk_of
from .refit import refitted
from .streams import Streams, walkable_blocks
from .unit_store import UnitStore
from .values import plan_values

__all__ = ["Gptq", "gptq_layer", "gptq_next"]

LAZY_COLUMNS = 64
MOST_DAMPING = 1e3
JUDGED = 0.25
"""Of the samples: those on which it is judged whether to aim at the float network's output."""
FEWEST_JUDGED = 4
# Of a tied embedding: the error of a looked up row counts in every direction, as much as a mean input does.
TIED_DAMPING = 1.0


@dataclass(frozen=True)
class Gptq:
    """Settings of GPTQ.

    Parameters
    ----------
    damping : float
        Added to the diagonal of the Gram matrix at least, in units of its mean; more where one half of the
        samples says so of the other, see `confirmed_damping`.
    order : bool
        Columns by descending diagonal of the Gram matrix; else as they are.
    sequential : bool
        Gram matrices of the inputs that the layers get in the quantized network; else of the float network's.
    float_target : bool
        With `sequential`: aim at the output of the float layer on the *float* inputs, so that a layer also
        makes up for the errors of those before it. With low-bit activations only where that is better for
        samples that it was not fitted to, see `confirmed`.
    positions : int
        Output positions of a layer (pixels, tokens), per weight of an output channel, whose inputs are added
        to its Gram matrix; where there are more, so many are drawn. Neighbouring positions say much the same.
    refits : int
        Rounds of refitting every channel's steps to its codes, in all but the first after rounding anew at
        the steps of the round before; 0 keeps those of nearest rounding.
    weighted : bool
        Positions count by what an error there does to the network's output, see `position_weights`.
    memory_bytes : int
        Bound on the activations that are kept in memory.

    Raises
    ------
    InputError
        A damping or a number of positions that is not positive, or a negative number of refits.

    References
    ----------
    Frantar et al., "GPTQ: accurate post-training quantization for generative pre-trained transformers",
    ICLR 2023, algorithm 1. The float target: Li et al., "GPTAQ: efficient finetuning-free quantization for
    asymmetric calibration", ICML 2025.
    """

    damping: float = 0.01
    order: bool = True
    sequential: bool = True
    float_target: bool = True
    positions: int = 32
    refits: int = 4
    weighted: bool = True
    memory_bytes: int = 2**31

    def __post_init__(self) -> None:
        if not 0 < self.damping < MOST_DAMPING:
            raise InputError(
                f"GPTQ has damping {self.damping}; it is above 0 and below {MOST_DAMPING:g}, such as 0.01"
            )
        if self.refits < 0:
            raise InputError(f"GPTQ refits steps {self.refits} times; give 0 to keep them, or more")
        check_positions("GPTQ", self.positions)

    def of(self, layer: Layer) -> Gptq:
        """The settings for a layer: where rows are looked up as well, with a damping of 1 or more."""
        return replace(self, damping=max(self.damping, TIED_DAMPING)) if layer.lookups else self

    @property
    def crossed(self) -> bool:
        """Whether both networks' inputs are read."""
        return self.sequential and self.float_target

    def finalize(
        self,
        network: Network,
        plan: Plan,
        data: Data,
        progress: Progress | None = None,
        store: Path | None = None,
    ) -> Finalized:
        """Integer weights of a plan, with steps of their own.

        Parameters
        ----------
        data : Data
            Calibration inputs.
        progress : callable, optional
            Told (layers done, layers in all), every layer three times where `confirmed` tries.
        store : Path, optional
            Folder for finished layers, from which an interrupted run goes on to the same result.

        Raises
        ------
        InputError
            The plan does not fit the network, or the network has several inputs.
        """
        trials = self.trials(plan, data)
        settings = self.confirmed(network, plan, data, store, progress)
        return settings._walked(network, plan, data, walk_of(progress, trials, trials + 1), store)

    def trials(self, plan: Plan, data: Data) -> int:
        """How many walks through all layers `confirmed` takes: two, or none where there is nothing to try."""
        _, judged = learned_and_judged(len(data), JUDGED)
        has_low_bits = bool(value_tensors(plan_values(plan)))
        return 2 if self.crossed and has_low_bits and len(judged) >= FEWEST_JUDGED else 0

    def confirmed(
        self,
        network: Network,
        plan: Plan,
        data: Data,
        store: Path | None = None,
        progress: Progress | None = None,
    ) -> Gptq:
        """These settings, or without the float target where activations in low bits make it misleading.

        What rounding activations does is noise of which weights can only take back a part, and they do so by
        shrinking what carries it; layer after layer that may cost the network more than the noise. So where
        a plan has such activations, both are tried on most of the samples, and the float target is given up
        where the network then loses less on the rest, see `typical_ratio`.

        Parameters
        ----------
        store : Path, optional
            As for `finalize`; the trials go on from it too.
        progress : callable, optional
            Told of the two trials, and that as many layers follow as in one of them.
        """
        if self.trials(plan, data) == 0:
            return self
        learned, judged = learned_and_judged(len(data), JUDGED)
        fitted, others = data.part(slice(learned.stop)), data.part(slice(judged.start, None))
        reference = float_logits(network, others)

        def losses(settings: Gptq, number: int) -> Tensor:
            try:
                found = settings._walked(network, plan, fitted, walk_of(progress, number, 3), store)
            except NotFiniteError:
                return reference.new_full((len(others),), torch.inf, dtype=torch.float64)
            return measure_samples(network, others, found.tensors(network), reference).loss

        plain = replace(self, float_target=False)
        without, aimed = losses(plain, 0), losses(self, 1)
        if not bool(aimed.isfinite().all()):
            return plain if bool(without.isfinite().all()) else self
        return plain if typical_ratio(aimed, without) > 1 else self

    def _walked(
        self, network: Network, plan: Plan, data: Data, progress: Progress | None, store: Path | None
    ) -> Finalized:
        """`finalize` with these settings as they are."""
        kept = UnitStore.of(store, self, network, plan, data)
        nearest, numbers = NearestLayers(network, plan), dict[str, int]()
        done: dict[str, StoredLayer] = {}
        values = plan_values(plan)
        known = value_tensors(values) if self.sequential else {}
        with ActivationStore(self.memory_bytes) as activations:
            streams = Streams(network, data, activations, with_float=self.crossed, replaced=known)
            for block in walkable_blocks(network, data):
                streams.advance(block.entry)
                inputs = _Inputs(streams, self, range(len(data.inputs)))
                for layer in block.layers:
                    frame, number = nearest.frame(layer), len(numbers)
                    found = kept.load(number, [frame])
                    if found is None:
                        stored = nearest.of(layer)
                        if layer.products:
                            weight = rows(layer, network.weight(layer))
                            stored = gptq_layer(weight, inputs.of(layer), stored, self.of(layer))
                        kept.save(number, [stored])
                    else:
                        (stored,) = found.layers
                    if self.sequential:
                        streams.replace(layer, stored)
                        inputs.forget(layer)
                    numbers[layer.name] = number
                    # Where the network does not fit into memory, nor do its codes.
                    done[layer.name] = frame if network.is_streamed and store is not None else stored
                    if progress is not None:
                        progress(len(done), len(network.layers))
        layers = {numbers[layer.name]: done[layer.name] for layer in network.layers}
        if network.is_streamed and store is not None:
            return Finalized(kept.on_demand(layers), values=values)
        return Finalized(tuple(layers.values()), values=values)


class _Inputs:
    """Gram matrices of a block's layers; those that read one value share where positions count alike."""

    def __init__(self, streams: Streams, settings: Gptq, samples: range) -> None:
        self._streams, self._settings, self._samples = streams, settings, samples
        self._last: tuple[tuple[str, ...], InputGram] | None = None

    def of(self, layer: Layer) -> InputGram:
        """Of what enters a layer."""
        sources = self._streams.network.reads(layer)
        own = self._settings.weighted and any(
            node in self._streams.position_weights for node in layer.products
        )
        if layer.kind == "linear" and not own and self._last is not None and self._last[0] == sources:
            return self._last[1]
        gram = input_gram(
            self._streams,
            layer,
            self._samples,
            cross=self._settings.crossed,
            positions=self._settings.positions,
            weighted=self._settings.weighted,
        )
        self._last = None if own else (sources, gram)
        return gram

    def forget(self, layer: Layer) -> None:
        """Let the matrices go that depend on a layer which has been replaced."""
        if self._last is not None and any(
            layer.weight in self._streams.region(source).network.outlines for source in self._last[0]
        ):
            self._last = None


def gptq_next(
    streams: Streams, layer: Layer, start: StoredLayer, settings: Gptq, samples: int
) -> StoredLayer:
    """Codes and steps of one layer in the block at the cut; the layer joins the quantized network.

    Only the first `samples` are looked at. What only looks rows up keeps the codes of `start`, the nearest:
    there, one error cannot make up for another. An embedding that is tied to the last layer takes its codes
    from the inputs of that, damped more; see `Gptq.of`.

    With `sequential` unset the streams stay those of the float network.
    """
    stored = start
    if layer.products:
        gram = input_gram(
            streams,
            layer,
            range(samples),
            cross=settings.crossed,
            positions=settings.positions,
            weighted=settings.weighted,
        )
        stored = gptq_layer(rows(layer, streams.network.weight(layer)), gram, start, settings.of(layer))
    if settings.sequential:
        streams.replace(layer, stored)
    return stored


def gptq_layer(weight: Tensor, inputs: InputGram, start: StoredLayer, settings: Gptq) -> StoredLayer:
    """Codes of one layer by GPTQ, and the steps that fit them.

    With H the Gram matrix (damped) and U the upper Cholesky factor of its inverse, for every column j in turn

        e = (w_j - round(w_j)) / U_jj,    w_k -= e U_jk    for all later columns k.

    The steps of nearest rounding suit codes that each lie next to their weight, which these do not. So every
    row takes the steps of least error for its codes, see `refitted`, and at these its columns are rounded
    again. A row keeps the best of all that it was, `start` included.

    Parameters
    ----------
    weight : Tensor, shape (channels, fan_in)
    inputs : InputGram
        With a cross product, the weights first move towards the best float weights on the inputs of the
        quantized network, see `aimed_weight`.
    """
    groups, fan_in = len(inputs.gram), weight.shape[1]
    order = column_order(inputs, settings)
    target = weight.float().view(groups, -1, fan_in)
    if inputs.cross is not None:
        target = aimed_weight(target, inputs)
    gram, lower = factored(inputs.gram, confirmed_damping(inputs, settings.damping, order), order)
    # Factors need doubles; products with them, which cost most in wide layers, do not.
    gram, lower = gram.float(), lower.float()
    eye = torch.eye(fan_in, device=weight.device).expand_as(lower)
    factor = torch.linalg.solve_triangular(lower, eye, upper=False).flip(1, 2)

    def rounded(layer: StoredLayer) -> StoredLayer:
        grid = LayerGrid(layer)
        codes = grid.start()
        _round_columns(grid, codes, _columns(target, order), factor, order)
        return grid.stored(codes)

    found = rounded(start)
    better = _row_error(found, target, gram) < _row_error(start, target, gram)
    best = chosen_channels(start, found, better)
    if not settings.refits:
        return best
    least = _shared_error(best, target, gram)
    for again in range(settings.refits):
        found = refitted(rounded(best) if again else best, target, gram)
        error = _shared_error(found, target, gram)
        better = error < least
        best, least = chosen_channels(best, found, better), torch.where(better, error, least)
    # Channels of different rounds side by side: once more what 16 bits hold.
    return with_steps(best, [part.rows.steps for part in best.parts])


def column_order(inputs: InputGram, settings: Gptq) -> Tensor:
    """In which columns are rounded, shape (groups, fan_in)."""
    diagonal = inputs.gram.diagonal(dim1=1, dim2=2)
    if settings.order:
        return diagonal.argsort(dim=1, descending=True, stable=True)
    return torch.arange(diagonal.shape[1], device=diagonal.device).expand_as(diagonal)


def _columns(matrix: Tensor, order: Tensor) -> Tensor:
    return matrix.gather(2, order[:, None, :].expand(-1, matrix.shape[1], -1))


def _round_columns(
    grid: LayerGrid, codes: list[Tensor], target: Tensor, factor: Tensor, order: Tensor
) -> None:
    """The recursion of `gptq_layer` on columns in the order of rounding; writes `codes`."""
    groups, per_group, fan_in = target.shape
    for begin in range(0, fan_in, LAZY_COLUMNS):
        end = min(begin + LAZY_COLUMNS, fan_in)
        errors = torch.empty(groups, per_group, end - begin, dtype=target.dtype, device=target.device)
        for j in range(begin, end):
            values = target[:, :, j]
            columns = order[:, j].repeat_interleave(per_group)
            rounded = grid.round_into(codes, values.reshape(-1), columns).view_as(values)
            error = (values - rounded) / factor[:, j, j, None]
            target[:, :, j + 1 : end] -= error[:, :, None] * factor[:, j, None, j + 1 : end]
            errors[:, :, j - begin] = error
        # What a block of columns does to all later ones at once: one matrix product in place of many.
        target[:, :, end:] -= errors @ factor[:, begin:end, end:]


def _row_error(layer: StoredLayer, target: Tensor, gram: Tensor) -> Tensor:
    """``(q - w) H (q - w)'`` of every channel, shape (channels,)."""
    delta = layer.dequantize().view_as(target) - target
    return ((delta @ gram) * delta).sum(2).flatten()


def _shared_error(layer: StoredLayer, target: Tensor, gram: Tensor) -> Tensor:
    """The same, of all channels together that share their steps."""
    return sums_of_sharing(layer, _row_error(layer, target, gram))
