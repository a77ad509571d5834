"""What storing a value in low bits costs in quality: by the Fisher information, and exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..errors import InputError
from ..network import (
    SAMPLES_FIRST,
    ActivationStore,
    Data,
    Network,
    SampleAxis,
    Segment,
    activation_key,
    batch_size,
    batches,
    cut_segments,
    kl_divergence,
    quantize_activation,
    sample_axes,
)
from .activation_grids import SiteOptions
from .fisher import FisherSettings, layer_spans
from .labels import draw_directions
from .store import standard_error
from .subsample import Chosen, choose_samples
from .sweep import Cotangents, Sweep, WithCotangents

__all__ = ["ActivationScores", "score_activations", "score_activations_exact"]

MOST_SAMPLES_AT_ONCE = 64


@dataclass(frozen=True)
class ActivationScores:
    """Losses of storing one value alone in low bits.

    Attributes
    ----------
    losses : Tensor, shape (samples, sites, options), float64
        Options in the order of each site's own, 0 beyond them. Samples that were left out have 0, and others
        count for them, so that the mean is that of all.
    """

    losses: Tensor

    @cached_property
    def loss(self) -> Tensor:
        """Mean over samples, shape (sites, options)."""
        return self.losses.mean(0)

    @cached_property
    def error(self) -> Tensor:
        """Standard error of `loss`."""
        return standard_error(self.losses.sum(0), self.losses.square().sum(0), len(self.losses))


def score_activations(
    network: Network,
    data: Data,
    sites: Sequence[SiteOptions],
    settings: FisherSettings,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> ActivationScores:
    """Loss of every option of every value by the Fisher information of the output distribution.

    For the change of a value from x to x^(o),

        loss(s, o) = 1/2 mean_n sum_r < u_r' dz_n/dx_s , x^_s(o) - x_s >^2   with   E sum_r u_r u_r' = F(z_n)

    which is KL(float || quantized) to second order, as for weights, see `score_fisher`. One forward pass, and
    one more and a backward pass per draw for the samples whose output is not certain. Where weights are
    streamed, the network is cut into segments whose weights fit into memory, see `Sweep`.

    Parameters
    ----------
    on_progress : callable, optional
        Told (samples done, samples in all), counted over all segments.

    Raises
    ------
    InputError
        A score is NaN or infinite; names the value and the option. ``Labels.ALL`` for an output with too many
        classes or several positions.
    """
    network = network.widened()
    data = data.taken_by(network)
    chosen = choose_samples(network, data, settings.share, settings.seed)
    chunk, axes = _chunk(network, data, settings), sample_axes(network, data)
    if any(axes[site.site.name].shared for site in sites if site.site.name in axes):
        # Of several samples at once, what such a value does to each of them is not known.
        chunk = 1
    layers = network.layers
    # Weights in memory are there anyhow.
    spans = layer_spans(layers, 1, settings.memory_bytes // 2) if network.is_streamed else [list(layers)]
    segments = cut_segments(network, spans)
    places = {site.site.name: row for row, site in enumerate(sites)}
    losses = _no_losses(data, sites)
    done, in_all = 0, len(segments) * len(chosen.index)
    for part, values in _ways_back(network, data, segments, chosen.cut(chunk), frozenset(places), settings):
        for name, (value, gradients) in values.items():
            row, axis = places[name], axes.get(name, SAMPLES_FIRST)
            effects = _effects(sites[row], value, gradients, axis, len(part.index))
            loss = part.weight[:, None] * effects.square().sum(0) / 2
            losses[part.index, row, : loss.shape[1]] = loss
        done += len(part.index)
        if on_progress is not None:
            on_progress(done, in_all)
    return _checked(sites, losses)


def score_activations_exact(
    network: Network,
    data: Data,
    sites: Sequence[SiteOptions],
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> ActivationScores:
    """Loss of every option by measurement: values times options replays of the rest of the network.

    Raises
    ------
    InputError
        A score is NaN or infinite; names the value and the option.
    """
    losses = _no_losses(data, sites)
    with torch.inference_mode():
        for part in batches(len(losses), batch_size(network)):
            replay = network.replay(data.inputs[part].to(network.device))
            reference: Tensor | None = None
            for row, site in enumerate(sites):
                replay.advance_to(site.site.name)
                reference = replay.finish() if reference is None else reference
                for column, entry in enumerate(site.entries()):
                    changed = replay.finish({activation_key(site.site.name): entry})
                    losses[part, row, column] = kl_divergence(reference, changed).double().cpu()
            if on_progress is not None:
                on_progress(part.stop, len(losses))
    return _checked(sites, losses)


def _ways_back(
    network: Network,
    data: Data,
    segments: Sequence[Segment],
    chunks: Sequence[Chosen],
    watched: frozenset[str],
    settings: FisherSettings,
) -> Iterator[tuple[Chosen, dict[str, WithCotangents]]]:
    """The values of every segment for every chunk of samples, with ``u_r' dz_n/dx``, scaled for means."""
    with ActivationStore(settings.memory_bytes // 4) as held:
        inputs = [data.inputs[chunk.index] for chunk in chunks]
        sweep = Sweep(network, segments, inputs, held, watched)
        sweep.forward(len(segments) - 1)
        entering: list[Cotangents] = [[] for _ in chunks]
        for number in reversed(range(len(segments))):
            for at, chunk in enumerate(chunks):

                def drawn(logits: Tensor, chunk: Chosen = chunk) -> Cotangents:
                    samples, scale = chunk.index.tolist(), logits[0, ..., 0].numel() ** -0.5
                    found = draw_directions(logits, settings.labels, settings.draws, settings.seed, samples)
                    return [{network.schedule.output: scale * direction} for direction in found]

                is_last = number + 1 == len(segments)
                found = sweep.back(number, at, drawn if is_last else entering[at])
                entering[at] = found.entering
                yield chunk, found.values
            sweep.drop(number)


def _effects(
    site: SiteOptions, value: Tensor, gradients: Sequence[Tensor | None], axis: SampleAxis, samples: int
) -> Tensor:
    """``< u_r' dz_n/dx , x^(o) - x >`` of one value, shape (draws, samples, options)."""
    effects = torch.zeros(len(gradients), samples, len(site.options), dtype=torch.float64)
    with torch.inference_mode():
        for column, entry in enumerate(site.entries()):
            change = quantize_activation(value, entry) - value
            for draw, gradient in enumerate(gradients):
                # A value that the output does not depend on has no derivative.
                if gradient is None:
                    continue
                product = axis.first(gradient * change, samples)
                if product is None:
                    raise InputError(
                        f"value '{site.site.name}': for {samples} samples its axis {axis.axis} has "
                        f"{value.shape[axis.axis]}, so what it does to one of them is not known; score "
                        "weights alone, or use --scores exact"
                    )
                effects[draw, :, column] = product.flatten(1).sum(1, dtype=torch.float64).cpu()
    return effects


def _chunk(network: Network, data: Data, settings: FisherSettings) -> int:
    """Samples whose values and gradients fit into half of the memory, judged from one sample."""
    floats = 0

    def count(name: str, value: Tensor) -> Tensor:
        nonlocal floats
        floats += (2 + settings.draws) * value.numel()
        return value

    with torch.inference_mode():
        network.run(data.inputs[:1].to(network.device), on_value=count)
    fitting = settings.memory_bytes // 2 // max(1, 4 * floats)
    return max(1, min(MOST_SAMPLES_AT_ONCE, fitting))


def _no_losses(data: Data, sites: Sequence[SiteOptions]) -> Tensor:
    options = max(len(site.options) for site in sites)
    return torch.zeros(len(data.inputs), len(sites), options, dtype=torch.float64)


def _checked(sites: Sequence[SiteOptions], losses: Tensor) -> ActivationScores:
    found = ActivationScores(losses)
    wrong = (~torch.isfinite(found.loss)).nonzero()
    if len(wrong):
        row, column = wrong[0].tolist()
        raise InputError(
            f"value '{sites[row].site.name}': score is {float(found.loss[row, column])} for option "
            f"{sites[row].options[column]}; check that the calibration data is scaled as in training"
        )
    return found
