"""AdaQuant: weights, steps and biases that keep each layer's output, layer after layer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ..allocator import Plan
from ..network import ActivationStore, Data, Layer, Network, rows
from .finalize import Finalized, StoredLayer, finalize_nearest, value_tensors
from .gptq import Gptq, gptq_layer
from .gram import InputGram
from .held_out import check_held_out, learned_and_judged
from .layer_inputs import check_positions, input_gram
from .method import Progress, walk_of
from .output_error import OutputError
from .straight_through import StraightThrough, learn_layer
from .streams import Streams, walkable_blocks
from .unit_store import UnitStore

__all__ = ["AdaQuant"]


@dataclass(frozen=True)
class AdaQuant:
    """Settings of AdaQuant.

    Every layer minimises, over its codes, its steps and its bias,

        sum_n || W_q x_n + b_q - (W x_n + b) ||^2

    The error is a quadratic form of the weight on the Gram matrix of the layer's inputs, so that every step
    of learning sees all calibration data at the price of one small matrix product, and the bias, being the
    weight of an input that is always 1, is at its best in closed form all along.

    Parameters
    ----------
    sequential : bool
        Inputs x as they are in the quantized network so far, in ``W x + b`` as in the float one; else all
        layers see the float network's inputs and could be learned in parallel.
    start : Gptq or None
        Where learning starts, by the damping, order and refits given here; None: rounding to nearest, as
        published. Where it has no float target, or gives it up, see `Gptq.confirmed`, x in ``W x + b`` is
        that of the quantized network too.
    held_out : float
        Share of the calibration data that is not learned from, on which a layer must beat its start to be
        kept.
    positions : int
        Output positions of a layer that are looked at, as `Gptq` has them.
    weighted : bool
        What positions count, as for `Gptq`.
    memory_bytes : int
        Bound on the activations that are kept in memory.
    learning : StraightThrough

    Raises
    ------
    InputError
        A share or a number of positions outside its range.

    References
    ----------
    Hubara et al., "Accurate post training quantization with small calibration sets", ICML 2021.
    """

    sequential: bool = True
    start: Gptq | None = field(default_factory=Gptq)
    held_out: float = 1 / 16
    positions: int = 32
    weighted: bool = True
    memory_bytes: int = 2**31
    learning: StraightThrough = field(default_factory=StraightThrough)

    def __post_init__(self) -> None:
        check_held_out("AdaQuant", self.held_out)
        check_positions("AdaQuant", self.positions)

    @property
    def crossed(self) -> bool:
        """Whether both networks' inputs are read."""
        return self.sequential and (self.start is None or self.start.float_target)

    def finalize(
        self,
        network: Network,
        plan: Plan,
        data: Data,
        progress: Progress | None = None,
        store: Path | None = None,
    ) -> Finalized:
        """Integer weights of a plan, with steps and biases of their own.

        Parameters
        ----------
        data : Data
            Calibration inputs.
        progress : callable, optional
            Told (layers done, layers in all), every layer three times where `Gptq.confirmed` tries.
        store : Path, optional
            Folder for finished layers, from which an interrupted run goes on to the same result.

        Raises
        ------
        InputError
            The plan does not fit the network, or the network has several inputs.
        """
        if self.crossed and self.start is not None:
            confirmed = self.start.confirmed(network, plan, data, store, progress)
            trials = self.start.trials(plan, data)
            progress = walk_of(progress, trials, trials + 1)
            if not confirmed.float_target:
                return replace(self, start=confirmed).finalize(network, plan, data, progress, store)
        kept = UnitStore.of(store, self, network, plan, data)
        rounded = finalize_nearest(network, plan)
        nearest = {layer.name: layer for layer in rounded.layers}
        known = value_tensors(rounded.values) if self.sequential else {}
        done: dict[str, StoredLayer] = {}
        biases: dict[str, Tensor] = {}
        with ActivationStore(self.memory_bytes) as activations:
            streams = Streams(network, data, activations, with_float=self.crossed, replaced=known)
            for block in walkable_blocks(network, data):
                streams.advance(block.entry)
                for layer in block.layers:
                    number, start = len(done), nearest[layer.name]
                    found = kept.load(number, [start])
                    if found is None:
                        stored, bias = self._learn(streams, layer, start)
                        own = {layer.bias: bias} if bias is not None and layer.bias is not None else {}
                        found = Finalized((stored,), own)
                        kept.save(number, found.layers, own)
                    (done[layer.name],) = found.layers
                    biases |= {name: value.to(network.device) for name, value in found.biases.items()}
                    if self.sequential:
                        streams.replace(layer, done[layer.name])
                        streams.replaced.update(biases)
                    if progress is not None:
                        progress(len(done), len(network.layers))
        return Finalized(tuple(done[layer.name] for layer in network.layers), biases, rounded.values)

    def _learn(
        self, streams: Streams, layer: Layer, nearest: StoredLayer
    ) -> tuple[StoredLayer, Tensor | None]:
        """Codes, steps and the bias of one layer; no bias where it stays the float network's.

        A layer that looks rows up stays as it starts, since the error of its products is not all that counts,
        and so does one that does not beat its start, which is then made from all of the calibration data.
        """
        weight, bias = rows(layer, streams.network.weight(layer)), streams.network.bias(layer)
        learned_from, judged_on = learned_and_judged(len(streams.data.inputs), self.held_out)

        def sums(samples: range, *, with_one: bool) -> InputGram:
            return input_gram(
                streams,
                layer,
                samples,
                cross=self.crossed,
                positions=self.positions,
                weighted=self.weighted,
                with_one=with_one,
            )

        if layer.lookups:
            if self.start is None or not layer.products:
                return nearest, None
            seen = sums(range(len(streams.data.inputs)), with_one=False)
            return gptq_layer(weight, seen, nearest, self.start.of(layer)), None
        inputs, others = (sums(each, with_one=bias is not None) for each in (learned_from, judged_on))
        start = nearest if self.start is None else gptq_layer(weight, inputs.bare(), nearest, self.start)
        target = _with_bias(weight, bias)
        error, judge = OutputError.of(inputs, target), OutputError.of(others, target)
        learned = learn_layer(start, error if bias is None else error.at_best_bias(), self.learning)
        values = learned.dequantize()
        best = None if bias is None else error.best_bias(values).to(bias)
        before = judge.of_rows(_with_bias(start.dequantize(), bias)).sum()
        if bool(judge.of_rows(_with_bias(values, best)).sum() < before):
            return learned, best
        if self.start is None:
            return nearest, None
        # What judged the layer is no longer needed for that.
        return gptq_layer(weight, inputs.plus(others).bare(), nearest, self.start), None


def _with_bias(weight: Tensor, bias: Tensor | None) -> Tensor:
    return weight if bias is None else torch.cat([weight, bias[:, None].to(weight)], 1)
