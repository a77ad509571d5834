"""Fisher scores: every option of every layer and channel from a few backward passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..network import Data, Layer, LayerCall, Network
from ..quantizer import Option, Quantizer
from .candidates import OptionWeights, cut_of, perturbations
from .folding import fold, row_count
from .labels import Labels, cotangents, noise_count
from .projections import by_sample, project_strips
from .store import SpanStore, standard_error
from .subsample import Chosen, choose_samples

__all__ = ["FisherScores", "FisherSettings", "score_fisher"]

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
        Bound of the working memory beside the network, from which chunks and spans follow.
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

    which is KL(float || quantized) to second order. One forward pass, and one more and a backward pass per
    draw for the samples whose output is not certain, give the scores of all options. Layers are taken in
    spans whose perturbations fit into memory, samples in chunks whose activations do; the sums of a span are
    kept in `store`, from which an interrupted run goes on.

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
        Told (samples done, samples in all), counted over all spans.

    Raises
    ------
    InputError
        ``Labels.ALL`` for an output with too many classes or several positions.
    """
    changed = network if around is None else network.replace(around)
    chosen = choose_samples(changed, data, settings.share, settings.seed)
    count = len(chosen.index)
    spans = _spans(network.layers, len(options), settings.memory_bytes // 2)
    chunk = _chunk(network, data, settings)
    strips = sum(cut_of(layer, settings.cut).strips for layer in network.layers)
    most_rows = min(settings.factor_rows, FACTOR_BYTES // (4 * strips * len(options)))
    settings = replace(settings, factor_rows=most_rows if most_rows >= FEWEST_FACTOR_ROWS else 0)
    projections: list[Tensor] = []
    channel_loss: list[Tensor] = []
    channel_error: list[Tensor] = []
    factors: list[Tensor] = []
    for number, span in enumerate(spans):
        # Another memory bound cuts the layers into other spans, to which the sums kept do not belong.
        kept = SpanStore.open(store, number, f"{key} {span[0].name} to {span[-1].name}")
        if kept.samples < count:
            deltas = {
                layer.name: perturbations(network, layer, options, quantizer, settings.cut, weights)
                for layer in span
            }
        while kept.samples < count:
            # Not a multiple of the chunk where an earlier run had chunks of another size.
            part = slice(kept.samples, kept.samples + chunk)
            some = Chosen(chosen.index[part], chosen.weight[part])
            kept.add(*_chunk_scores(changed, span, deltas, data, some, settings, part.start, count))
            if on_progress is not None:
                on_progress(number * count + kept.samples, len(spans) * count)
        kept.close()
        projections.append(kept.projections)
        mean, error = kept.channel_scores(len(data.inputs))
        channel_loss.append(mean)
        channel_error.append(error)
        if kept.factors is not None:
            factors.append(kept.factors)
    return FisherScores(
        len(data.inputs),
        torch.cat(projections, 2),
        torch.cat(channel_loss),
        torch.cat(channel_error),
        torch.cat(factors, 1) if factors else None,
    )


def _chunk_scores(
    network: Network,
    span: Sequence[Layer],
    deltas: dict[str, Tensor],
    data: Data,
    chosen: Chosen,
    settings: FisherSettings,
    first: int,
    count: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Projections (samples, draws, layers, options); sum and sum of squares over samples of the channels'
    losses, each (channels, options); and the folded projections of the strips, where they are kept."""
    uses: list[tuple[LayerCall, Tensor, Tensor]] = []

    def watch(call: LayerCall, entering: Tensor, leaving: Tensor) -> Tensor:
        if call.layer.name in deltas:
            if not leaving.requires_grad:
                leaving = leaving.detach().requires_grad_()
            uses.append((call, entering.detach(), leaving))
        return leaving

    with torch.enable_grad():
        logits = network.run(data.inputs[chosen.index].to(network.device), on_layer=watch)
    noise = _noise(logits, chosen.index.tolist(), settings)
    directions = cotangents(logits, settings.labels, settings.draws, noise)
    leaving = [use[2] for use in uses]
    gradients = [
        torch.autograd.grad(logits, leaving, direction, retain_graph=index + 1 < len(directions))
        for index, direction in enumerate(directions)
    ]
    totals: dict[str, Tensor] = {}
    for index, (call, entering, _) in enumerate(uses):
        # Networks in other floats than the perturbations' are welcome.
        samples = len(logits)
        received = [by_sample(call, gradient[index].to(torch.float32), samples) for gradient in gradients]
        entering = by_sample(call, entering.to(torch.float32), samples)
        with torch.inference_mode():
            name = call.layer.name
            cut = cut_of(call.layer, settings.cut)
            effect = project_strips(call, entering, received, deltas[name], cut)
            totals[name] = totals[name] + effect if name in totals else effect
    # The mean over positions (tokens), which are drawn independently.
    scale = (chosen.weight / logits[0, ..., 0].numel()).sqrt().to(logits.device, torch.float32)
    effects = [totals[layer.name] * scale[:, None, None] for layer in span]
    layers = torch.stack([effect.sum(0) for effect in effects], 2)
    losses = [effect.square().sum(2).double() / 2 for effect in effects]
    total = torch.cat([loss.sum(1) for loss in losses])
    square = torch.cat([loss.square().sum(1) for loss in losses])
    if settings.factor_rows == 0:
        return layers.cpu(), total.cpu(), square.cpu(), None
    rows = row_count(count, len(directions), settings.factor_rows)
    return layers.cpu(), total.cpu(), square.cpu(), fold(effects, first, rows, settings.seed)


def _noise(logits: Tensor, samples: Sequence[int], settings: FisherSettings) -> Tensor | None:
    """Uniform numbers of every sample of the chunk, each sample from a generator of its own."""
    count = noise_count(settings.labels, settings.draws, logits.shape[-1])
    if count == 0:
        return None
    drawn = [
        torch.rand(
            (*logits.shape[1:-1], count),
            generator=torch.Generator().manual_seed(settings.seed * 1_000_003 + sample),
        )
        for sample in samples
    ]
    return torch.stack(drawn).to(logits.device)


def _spans(layers: Sequence[Layer], options: int, limit_bytes: int) -> list[list[Layer]]:
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


def _chunk(network: Network, data: Data, settings: FisherSettings) -> int:
    """Samples whose activations and gradients fit into half of the memory, judged from one sample."""
    floats = 0

    def count(call: LayerCall, entering: Tensor, leaving: Tensor) -> Tensor:
        nonlocal floats
        # The draws' gradients, and about as much again for what the nodes between layers keep.
        floats += 2 * entering.numel() + (2 + settings.draws) * leaving.numel()
        return leaving

    with torch.inference_mode():
        network.run(data.inputs[:1].to(network.device), on_layer=count)
    fitting = settings.memory_bytes // 2 // max(1, 4 * floats)
    return max(1, min(MOST_SAMPLES_AT_ONCE, fitting))
