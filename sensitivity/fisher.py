"""Fisher scores: every option of every layer and channel from a few backward passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..network import Data, Layer, LayerCall, Network, Segment, cut_segments, sample_axes
from ..quantizer import Option, Quantizer
from .candidates import OptionWeights, cut_of, perturbations
from .fisher_pass import FisherPass
from .labels import Labels
from .store import SegmentStore, standard_error
from .subsample import choose_samples

__all__ = ["FisherScores", "FisherSettings", "layer_spans", "score_fisher"]

MOST_SAMPLES_AT_ONCE = 64
FACTOR_BYTES, FEWEST_FACTOR_ROWS = 2**30, 64


@dataclass(frozen=True)
class FisherSettings:
    """How the scores are estimated.

    Attributes
    ----------
    labels : Labels
    draws : int
        Directions (labels) drawn per sample.
    seed : int
        Draws of sample i depend on the seed and i alone, not on how samples are cut into chunks.
    share : float
        Share of the output's Fisher information whose samples get a backward pass; the rest is sampled, see
        `choose_samples`. 1 takes every sample.
    memory_bytes : int
        Bound of the working memory beside the network, from which chunks and segments follow.
    cut : str, optional
        ``inputs:64`` scores linear layers by runs of 64 input weights, where their inputs are 2 or more times
        64; None scores output channels. See `LayerCut`.
    factor_rows : int
        Most rows in which the projections of all strips are kept, from which their joint loss follows; none
        where fewer than 64 rows of float32 would fit into 1 GiB.
    """

    labels: Labels = Labels.PROJECTED
    draws: int = 2
    seed: int = 0
    share: float = 0.99
    memory_bytes: int = 2**31
    cut: str | None = None
    factor_rows: int = 512


@dataclass(frozen=True)
class FisherScores:
    """Second-order losses and their standard errors over samples.

    Attributes
    ----------
    samples : int
        Number of calibration samples.
    projections : Tensor, shape (chosen samples, draws, layers, options), float32
        v[n, r, l, o], scaled so that ``1/2 sum_r v^2`` is the loss of sample n over the probability with
        which it was chosen; sums over n, divided by `samples`, are means. Products between layers are the
        joint Gram matrix.
    channel_loss, channel_error : Tensor, shape (strips of all layers, options), float64
        Loss of quantizing one strip (output channel, unless the layer is cut) alone, mean over samples, and
        its standard error.
    factors : Tensor, shape (rows, strips of all layers, options), float32, or None
        Projections of the strips, folded, and scaled as `projections`; see `fold`.
    """

    samples: int
    projections: Tensor
    channel_loss: Tensor
    channel_error: Tensor
    factors: Tensor | None = None

    def layer_loss(self) -> Tensor:
        """``1/2 mean_n sum_r v[n, r, l, o]^2``, shape (layers, options), float64."""
        return self._sample_loss().sum(0) / self.samples

    def layer_error(self) -> Tensor:
        """Standard error of `layer_loss` over samples, shape (layers, options), float64."""
        loss = self._sample_loss()
        return standard_error(loss.sum(0), loss.square().sum(0), self.samples)

    def _sample_loss(self) -> Tensor:
        return self.projections.double().square().sum(1) / 2


def score_fisher(
    network: Network,
    data: Data,
    options: Sequence[Option],
    quantizer: Quantizer,
    settings: FisherSettings,
    *,
    around: Mapping[str, Tensor] | None = None,
    weights: OptionWeights | None = None,
    store: Path | None = None,
    key: str = "",
    on_progress: Callable[[int, int], None] | None = None,
) -> FisherScores:
    """Loss of every option by the Fisher information of the output distribution.

    For the change dW_l(o) of a layer's weight,

        loss(l, o) = 1/2 mean_n sum_r < u_r' dz_n/dW_l , dW_l(o) >^2   with   E sum_r u_r u_r' = F(z_n)

    which is KL(float || quantized) to second order. One forward pass, and two more and a backward pass per
    draw for the samples whose output is not certain, give the scores of all options. The network is cut into
    segments whose perturbations fit into memory, and the samples into chunks whose activations do; see
    `Sweep`. The sums of a segment are kept in `store`, from which an interrupted run goes on.

    Parameters
    ----------
    around : mapping of str to Tensor, optional
        Tensors of a changed network at which the Fisher information is taken; the perturbations stay those of
        the float weights, so that differences between two options are what a move from one to the other does.
    weights : callable, optional
        Weights of the options in place of those rounded to nearest.
    store : Path, optional
        Folder for the partial sums; `key` names what they belong to, and sums under another key are ignored.
    on_progress : callable, optional
        Told (samples done, samples in all), counted over all segments.

    Raises
    ------
    InputError
        ``Labels.ALL`` for an output with too many classes or several positions.
    """
    changed = (network if around is None else network.replace(around)).widened()
    data = data.taken_by(changed)
    chosen = choose_samples(changed, data, settings.share, settings.seed)
    segments = cut_segments(changed, layer_spans(network.layers, len(options), settings.memory_bytes // 2))
    chunk, positions = _chunk(changed, segments, data, settings)
    axes = sample_axes(changed, data)
    if any(axes[node].shared for layer in network.layers for node in layer.nodes if node in axes):
        # Of several samples at once, what such a layer does to each of them is not known.
        chunk = 1
    strips = sum(cut_of(layer, settings.cut).strips for layer in network.layers)
    most_rows = min(settings.factor_rows, FACTOR_BYTES // (4 * strips * len(options)))
    whole = FisherPass(
        network=changed,
        segments=segments,
        chunks=chosen.cut(chunk),
        positions=positions,
        perturbations=lambda layer: perturbations(network, layer, options, quantizer, settings.cut, weights),
        axes=axes,
        cut=settings.cut,
        labels=settings.labels,
        draws=settings.draws,
        seed=settings.seed,
        factor_rows=most_rows if most_rows >= FEWEST_FACTOR_ROWS else 0,
        kept_bytes=settings.memory_bytes // 4,
    )
    # Another memory bound makes other segments and chunks, to which the sums kept do not belong.
    keys = [f"{key} {each.layers[0].name} to {each.layers[-1].name} by {chunk}" for each in segments]
    stores = [SegmentStore.open(store, number, text) for number, text in enumerate(keys)]
    whole.run(data.inputs, stores, on_progress)
    means, errors = zip(*(kept.channel_scores(len(data.inputs)) for kept in stores), strict=True)
    factors = [kept.factors for kept in stores if kept.factors is not None]
    return FisherScores(
        len(data.inputs),
        torch.cat([kept.projections for kept in stores], 2),
        torch.cat(means),
        torch.cat(errors),
        torch.cat(factors, 1) if factors else None,
    )


def layer_spans(layers: Sequence[Layer], options: int, limit_bytes: int) -> list[list[Layer]]:
    """Consecutive layers whose float32 perturbations fit into the limit, at least one layer each."""
    spans: list[list[Layer]] = [[]]
    filled = 0
    for layer in layers:
        size = 4 * options * layer.channels * layer.fan_in
        if spans[-1] and filled + size > limit_bytes:
            spans.append([])
            filled = 0
        spans[-1].append(layer)
        filled += size
    return spans


def _chunk(
    network: Network, segments: Sequence[Segment], data: Data, settings: FisherSettings
) -> tuple[int, int]:
    """Samples whose activations and gradients fit into memory in every segment, and positions per sample.

    Judged from one sample; what is kept between several segments gets half of that memory.
    """
    floats = dict.fromkeys(range(len(segments)), 0)
    place = {layer.name: number for number, segment in enumerate(segments) for layer in segment.layers}

    def count(call: LayerCall, entering: Tensor, leaving: Tensor) -> Tensor:
        # The draws' gradients, and about as much again for what the nodes between layers keep.
        if call.layer.name in place:
            size = 2 * entering.numel() + (2 + settings.draws) * leaving.numel()
            floats[place[call.layer.name]] += size
        return leaving

    with torch.inference_mode():
        output = network.run(data.inputs[:1].to(network.device), on_layer=count)
    room = settings.memory_bytes // (2 if len(segments) == 1 else 4)
    fitting = room // max(1, 4 * max(floats.values()))
    return max(1, min(MOST_SAMPLES_AT_ONCE, fitting)), output[0, ..., 0].numel()
