"""Learning which way to round the weights of one unit, so that its output stays what it was."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import InputError
from ..network import ACTIVATION_BATCH, Activations, Layer, Network, batches, from_rows
from .cells import shares_step, with_factors
from .finalize import StoredLayer
from .grids import Bracket
from .region import Region

__all__ = ["Learned", "Learning", "UnitData", "learn_rounding", "output_error"]

# The rectified sigmoid: stretched beyond 0 and 1 and clipped, so that it reaches both.
STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1
FIRST_BETA, LAST_BETA = 20.0, 2.0
# How close to its two ends a weight may start: at an end the gradient is zero.
START_MARGIN = 0.05
CHECK_EVERY = 50
_RANGES = (
    ("iterations", 1, 10**7),
    ("batch", 1, 10**6),
    ("rate", 1e-9, 10.0),
    ("step_rate", 0.0, 1.0),
    ("pull", 0.0, 1e6),
    ("warmup", 0.0, 1.0),
    ("soften", 0.0, 1.0),
    ("drop", 0.0, 1.0),
    ("seed", 0, 2**62),
)
SETTLED, NEARLY_SETTLED = 1e-3, 0.05


@dataclass(frozen=True)
class Learning:
    """How the rounding is learned.

    Parameters
    ----------
    iterations : int
        Steps of Adam per unit, at most; a unit whose weights have all settled at one end stops early.
    batch : int
        Samples per step.
    rate : float
        Learning rate.
    pull : float
        Weight of the regulariser that draws every weight to one of its two values: that of all weights of
        the unit together, relative to its error before learning. One weight's share of that error falls with
        their number, and so does what it takes to move it.
    warmup : float
        Share of the iterations without that regulariser.
    step_rate : float
        Learning rate of the logarithms of steps, which falls to 0 along half a cosine: of the activations',
        and of a factor for all steps of an output channel. 0 leaves them as they are.
    soften : float
        Where each weight begins: 0 at its stored value, 1 at the float one as far as that is in the stored
        value's cell. Between the two, learning keeps what a good start has found and is free to leave it.
    drop : float
        Share of a unit's input values that are the float network's in place of the quantized one's, drawn
        anew for every sample and step.
    seed : int

    Raises
    ------
    InputError
        A setting outside its range.
    """

    iterations: int = 1000
    batch: int = 8
    rate: float = 2e-2
    step_rate: float = 1e-3
    pull: float = 300.0
    warmup: float = 0.2
    soften: float = 0.5
    drop: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least, most in _RANGES:
            value = getattr(self, name)
            if not least <= value <= most:
                raise InputError(
                    f"learned rounding has {name} {value:g}; it is between {least:g} and {most:g}"
                )


@dataclass(frozen=True)
class UnitData:
    """What one unit learns from.

    Attributes
    ----------
    quantized, floating : Activations
        What enters the unit in the two networks.
    target : Activations
        What leaves it in the float network.
    importance : Activations or None
        Weight of the squared error of every value that leaves; None: all the same.
    inputs : Activations
        The network's own inputs.
    """

    quantized: Activations
    floating: Activations
    target: Activations
    importance: Activations | None
    inputs: Activations


@dataclass(frozen=True)
class Learned:
    """What came out of a unit, and after how many iterations.

    Attributes
    ----------
    layers : tuple of StoredLayer
    iterations : int
    unsettled : float
        Share of the weights that were still between their two values and were rounded at the end.
    values : dict of str to Tensor
        What quantizes the values whose steps were learned, as `value_tensors` names it.
    """

    layers: tuple[StoredLayer, ...]
    iterations: int
    unsettled: float
    values: dict[str, Tensor] = field(default_factory=dict)


def output_error(
    region: Region, data: UnitData, tensors: Mapping[str, Tensor], samples: Sequence[int] | range
) -> float:
    """Mean over samples and values of the (weighted) squared difference to the target, in float32."""
    total, count = 0.0, 0
    with torch.inference_mode():
        for part in batches(len(samples), ACTIVATION_BATCH):
            take = _Taker(region, torch.as_tensor(samples[part]))
            output = region.run(take(data.quantized), take(data.inputs), tensors)
            squares = (output.float() - take(data.target).float()).square_()
            if data.importance is not None:
                squares *= take(data.importance)
            total += float(squares.sum(dtype=torch.float64))
            count += squares.numel()
    return total / max(count, 1)


def learn_rounding(
    region: Region,
    data: UnitData,
    layers: Sequence[Layer],
    brackets: Sequence[Bracket],
    tensors: Mapping[str, Tensor],
    samples: int,
    scale: float,
    settings: Learning,
    generator: torch.Generator,
    steps_of: Sequence[str] = (),
) -> Learned | None:
    """Layers of one unit with every weight at one of its two values, and with learned steps.

    A weight is ``(low + gap h(V)) exp(t)`` with ``h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1)`` (AdaRound,
    equation 23) and one t for each output channel, and V and t minimise

        error / scale + pull * mean (1 - |2 h - 1|^beta)

    where beta falls from 20 to 2, so that first the weights near an end and then all others go to it.

    Parameters
    ----------
    tensors : mapping
        The quantized network's tensors before this unit.
    samples : int
        The first so many samples are learned from.
    scale : float
        Positive; error of the unit as it would be without learning.
    generator : torch.Generator
        Draws the samples of every step; of several units each has its own.
    steps_of : sequence of str
        Names among `tensors` of what quantizes values with one range, whose steps are learned with the
        rounding, by their logarithms; zero points stay.

    Returns
    -------
    Learned or None
        None where no slope reaches the weights: the unit's output is made of comparisons.

    References
    ----------
    Nagel et al., "Up or down? Adaptive rounding for post-training quantization", ICML 2020, section 3.
    Li et al., "BRECQ", ICLR 2021. Mixed inputs: Wei et al., "QDrop", ICLR 2022. Steps: Esser et al., "Learned
    step size quantization", ICLR 2020.
    """
    low = torch.cat([bracket.low.flatten() for bracket in brackets])
    gap = torch.cat([bracket.gap.flatten() for bracket in brackets])
    begin = torch.cat([bracket.begin(settings.soften).flatten() for bracket in brackets])
    position = begin.clamp(START_MARGIN, 1 - START_MARGIN)
    latent = torch.logit((position - STRETCH_LOW) / (STRETCH_HIGH - STRETCH_LOW))
    steps = _Steps(layers, brackets, tensors, steps_of, region.network)
    groups = [
        {"params": [latent], "lr": settings.rate},
        {"params": steps.parameters, "lr": settings.step_rate},
    ]
    adam = torch.optim.Adam(groups)
    warm, iteration = round(settings.warmup * settings.iterations), 0
    for iteration in range(settings.iterations):
        sigmoid = latent.sigmoid()
        stretched = sigmoid * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW
        share = stretched.clamp(0.0, 1.0)
        weights = (low + gap * share).requires_grad_()
        changed = {**steps.weights(weights), **steps.values()}
        error = _batch_error(region, data, changed, tensors, samples, settings, generator) / scale
        if not error.requires_grad:
            return None
        slope, *slopes = (
            # A root of exactly 0 has no finite slope; what has none is moved by the pull alone.
            torch.nan_to_num(each, 0.0, 0.0, 0.0)
            for each in torch.autograd.grad(error, (weights, *steps.parameters), materialize_grads=True)
        )
        falling = (1 + math.cos(math.pi * iteration / settings.iterations)) / 2
        adam.param_groups[1]["lr"] = settings.step_rate * falling
        for each, own in zip(steps.parameters, slopes, strict=True):
            each.grad = own
        slope = slope * gap
        if iteration >= warm:
            progress = (iteration - warm) / max(1, settings.iterations - warm)
            beta = FIRST_BETA + (LAST_BETA - FIRST_BETA) * progress
            slope += settings.pull / len(low) * _pull_slope(share, beta)
        inside = (stretched > 0) & (stretched < 1)
        latent.grad = slope * (STRETCH_HIGH - STRETCH_LOW) * sigmoid * (1 - sigmoid) * inside
        adam.step()
        if iteration % CHECK_EVERY == 0 and bool((torch.minimum(share, 1 - share) < SETTLED).all()):
            break
    up = latent > 0
    between = (torch.minimum(share, 1 - share) > NEARLY_SETTLED).float().mean()
    chosen = torch.split(up, [bracket.low.numel() for bracket in brackets])
    with torch.no_grad():
        stored = [
            bracket.choose(each.view_as(bracket.low)) for bracket, each in zip(brackets, chosen, strict=True)
        ]
        finished = steps.of_layers(stored) if settings.step_rate else tuple(stored)
        return Learned(finished, iteration + 1, float(between), steps.values())


class _Steps:
    """The logarithms by which steps are stretched: one for each output channel, one for each value."""

    def __init__(
        self,
        layers: Sequence[Layer],
        brackets: Sequence[Bracket],
        tensors: Mapping[str, Tensor],
        steps_of: Sequence[str],
        network: Network,
    ) -> None:
        self._layers, self._like, device = layers, network.tensors, network.device
        self._entries = {name: tensors[name].to(device) for name in steps_of}
        counts = [1 if shares_step(bracket.grid.layer) else len(bracket.low) for bracket in brackets]
        self._weight_logs = [torch.zeros(count, device=device, requires_grad=True) for count in counts]
        self._value_logs = torch.zeros(len(steps_of), device=device, requires_grad=True)
        self.parameters = [*self._weight_logs, self._value_logs]

    def weights(self, flat: Tensor) -> dict[str, Tensor]:
        """The weights by their tensors' names, from those of all layers at the steps they begin with."""
        sizes = [layer.channels * layer.fan_in for layer in self._layers]
        found = {}
        for layer, part, logs in zip(self._layers, torch.split(flat, sizes), self._weight_logs, strict=True):
            matrix = part.view(layer.channels, layer.fan_in) * logs.exp()[:, None]
            found[layer.weight] = from_rows(layer, matrix).to(self._like[layer.weight])
        return found

    def of_layers(self, layers: Sequence[StoredLayer]) -> tuple[StoredLayer, ...]:
        """The layers at the steps that were learned."""
        return tuple(
            with_factors(layer, logs.exp().expand(own.channels))
            for layer, own, logs in zip(layers, self._layers, self._weight_logs, strict=True)
        )

    def values(self) -> dict[str, Tensor]:
        """What quantizes values: a step times its factor, and a zero point."""
        return {
            name: torch.cat([entry[:1] * factor, entry[1:]])
            for (name, entry), factor in zip(self._entries.items(), self._value_logs.exp(), strict=True)
        }


def _batch_error(
    region: Region,
    data: UnitData,
    weights: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    samples: int,
    settings: Learning,
    generator: torch.Generator,
) -> Tensor:
    take = _Taker(region, torch.randint(samples, (min(settings.batch, samples),), generator=generator))
    entering = take(data.quantized)
    if settings.drop and data.floating is not data.quantized:
        mask = torch.rand(entering.shape, generator=generator) < settings.drop
        entering = torch.where(mask.to(entering.device), take(data.floating), entering)
    output = region.run(entering, take(data.inputs), {**tensors, **weights})
    squares = (output.float() - take(data.target).float()).square()
    return squares.mean() if data.importance is None else (squares * take(data.importance)).mean()


@dataclass(frozen=True)
class _Taker:
    """Takes some samples of a value to where the region is: data, and what is on disk, are on the CPU."""

    region: Region
    index: Tensor

    def __call__(self, values: Activations) -> Tensor:
        return values.take(self.index).to(self.region.network.device)


def _pull_slope(share: Tensor, beta: float) -> Tensor:
    """Derivative of ``1 - |2 h - 1|^beta``."""
    centred = 2 * share - 1
    return -2 * beta * centred.sign() * centred.abs().pow_(beta - 1)
