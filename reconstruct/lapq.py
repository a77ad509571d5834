"""LAPQ: the steps of all layers by the loss of the whole network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from ..allocator import Plan
from ..errors import InputError
from ..network import Data, Network, find_sites, from_rows, rows, sample_sites, static_activation
from ..quantizer import (
    Quantizer,
    RangeSearch,
    RangeSettings,
    StepSearch,
    fit_range,
    places_of,
    search_steps,
    sum_grid,
)
from .cells import cells_of, nearest_at, with_steps
from .finalize import Finalized, StoredLayer, finalize_nearest, value_tensors
from .held_out import check_held_out, learned_and_judged
from .method import Progress
from .network_loss import NetworkLoss

__all__ = ["Lapq", "norm_layer", "vertex"]

Measure = Callable[[Mapping[str, Tensor]], float]

LEAST_EXPONENTS, MOST_EXPONENT = 3, 20.0
# Of the logarithm of a layer's factor: finer, a line search looks at noise.
TOLERANCE = 0.02
_RANGES = (("evaluations", 0, 10**7), ("samples", 1, 10**7), ("reach", 0.0, 2.0))


@dataclass(frozen=True)
class Lapq:
    """Settings of LAPQ.

    First all steps minimise the p-norm of the rounding error, with one p for the network: the loss is
    measured on a grid of p, and, where a parabola through it has its minimum inside the grid, there too.
    Then one factor for each layer multiplies its steps, and Powell's method minimises the loss over all
    factors together, as the steps of different layers make up for each other. Codes are always the nearest.
    Values in low bits take part in both: their steps and zero points at each p, or the given ones where they
    are better beside the weights' steps, and a factor for each step.

    Parameters
    ----------
    exponents : tuple of float
        The grid of p, ascending, each at least 1.
    evaluations : int
        Measurements of the loss that Powell's method may take; 0 leaves it out.
    samples : int
        Calibration samples on which the loss is measured.
    reach : float
        Bound on the logarithm of a factor.
    held_out : float
        Share of the calibration data that is not searched on; the outcome there decides between the plan's
        own steps, those of the best p and those of Powell's method.

    Raises
    ------
    InputError
        A setting outside its range.

    References
    ----------
    Nahshan et al., "Loss aware post-training quantization", Machine Learning 110, 2021.
    """

    exponents: tuple[float, ...] = (1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
    evaluations: int = 300
    samples: int = 256
    reach: float = 0.3
    held_out: float = 1 / 4

    def __post_init__(self) -> None:
        check_held_out("LAPQ", self.held_out)
        ascending = all(one < other for one, other in zip(self.exponents, self.exponents[1:], strict=False))
        inside = all(1 <= p <= MOST_EXPONENT for p in self.exponents)
        if len(self.exponents) < LEAST_EXPONENTS or not ascending or not inside:
            raise InputError(
                f"LAPQ has the exponents {self.exponents}; it takes {LEAST_EXPONENTS} or more, ascending, "
                f"from 1 to {MOST_EXPONENT:g}, such as (2.0, 3.0, 4.0)"
            )
        for name, least, most in _RANGES:
            value = getattr(self, name)
            if not least <= value <= most:
                raise InputError(f"LAPQ has {name} {value:g}; it is between {least:g} and {most:g}")

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
            Told (measurements done, measurements at most).
        store : Path, optional
            Nothing is kept: the search is one piece.

        Raises
        ------
        InputError
            The plan does not fit the network.
        """
        start = finalize_nearest(network, plan)
        searched, judged = learned_and_judged(len(data.inputs), self.held_out)
        # The grid, the start, the vertex, the given values, and Powell's method.
        total, done = len(self.exponents) + 2 + bool(start.values) + self.evaluations, 0
        loss = NetworkLoss(network, data, searched[: self.samples])

        def measure(tensors: Mapping[str, Tensor]) -> float:
            nonlocal done
            done = min(done + 1, total - 1)
            if progress is not None:
                progress(done, total)
            return loss.of(tensors)

        values = _NormValues(network, data.part(slice(searched.stop)), start)
        normed = self._best_norm(network, start, Quantizer.from_settings(plan.quantizer), measure, values)
        moved = self._best_factors(network, normed, measure)
        if progress is not None:
            progress(total, total)
        return min((start, normed, moved), key=NetworkLoss(network, data, judged).of_finalized)

    def _best_norm(
        self,
        network: Network,
        start: Finalized,
        quantizer: Quantizer,
        measure: Measure,
        values: _NormValues,
    ) -> Finalized:
        """The steps of the best p, or those given where they are better."""

        def with_norm(p: float) -> Finalized:
            pairs = zip(network.layers, start.layers, strict=True)
            layers = tuple(
                norm_layer(stored, rows(layer, network.weight(layer)), quantizer, p)
                for layer, stored in pairs
            )
            return replace(start, layers=layers, values=values.at(p))

        found = [(measure(each.tensors(network)), each) for each in map(with_norm, self.exponents)]
        between = vertex(self.exponents, [loss for loss, _ in found])
        if between is not None:
            each = with_norm(between)
            found.append((measure(each.tensors(network)), each))
        found.append((measure(start.tensors(network)), start))
        least, best = min(found, key=lambda pair: pair[0])
        if start.values and best is not start:
            # Ranges that were chosen by what the network loses may be better than those of any norm.
            given = replace(best, values=start.values)
            return given if measure(given.tensors(network)) < least else best
        return best

    def _best_factors(self, network: Network, start: Finalized, measure: Measure) -> Finalized:
        """The steps times the best factors that Powell's method meets."""
        # Finished networks are loaded where no solver is installed.
        from scipy.optimize import minimize

        if self.evaluations == 0:
            return start
        factors, best, least = _Factors(network, start), start, math.inf

        def objective(logs: Sequence[float]) -> float:
            nonlocal best, least
            found = measure(factors.tensors(logs))
            # Stopped in the middle of a line search, Powell's method does not return the best it met.
            if found < least:
                best, least = factors.finalized(), found
            return found

        count = factors.count
        options = {"maxfev": self.evaluations, "xtol": TOLERANCE, "ftol": 1e-4}
        bounds = [(-self.reach, self.reach)] * count
        minimize(objective, np.zeros(count), method="Powell", bounds=bounds, options=options)
        return best


def norm_layer(start: StoredLayer, weight: Tensor, quantizer: Quantizer, p: float) -> StoredLayer:
    """The layer at steps that minimise the p-norm of its rounding error, every cell on its own.

    A point of b bits takes the step of `search_steps`. Several points, whose steps are fitted together, have
    theirs multiplied by what the p-norm does to the step of one grid of as many bits in all.

    Parameters
    ----------
    start : StoredLayer
        Of the plan's quantizer.
    weight : Tensor, shape (channels, fan_in)
    quantizer : Quantizer
    p : float
    """
    matrix = weight if start.cut is None else start.cut.to_rows(weight)
    steps = []
    for part in start.parts:
        option = part.rows.option
        grid = sum_grid(option.bits, places_of(option.bits, option.points), quantizer.rounding)
        cells = cells_of(matrix[part.index].float(), option)
        each = cells.flatten(0, 1)
        ratio = search_steps(each, grid, StepSearch.P_NORM, p)
        ratio = ratio / search_steps(each, grid, quantizer.search, quantizer.p)
        steps.append(part.rows.steps * ratio.view(cells.shape[:2]))
    return nearest_at(with_steps(start, steps), weight.float())


def vertex(points: Sequence[float], losses: Sequence[float]) -> float | None:
    """Where the parabola of least squares through the losses is least.

    None where it is not convex, or is least at or beyond the first or the last point.
    """
    if not np.isfinite(losses).all():
        return None
    square, slope, _ = np.polyfit(points, losses, 2)
    if square <= 0:
        return None
    least = float(-slope / (2 * square))
    return least if points[0] < least < points[-1] else None


class _NormValues:
    """What quantizes values at steps and zero points that minimise a p-norm of their rounding error."""

    def __init__(self, network: Network, data: Data, start: Finalized) -> None:
        self._start = start.values
        fixed = {name for name, entry in start.values.items() if len(entry) > 1}
        sites = [site for site in find_sites(network, attention=True) if site.name in fixed]
        self._samples = sample_sites(network, data, sites) if sites else {}
        self._nonnegative = {site.name: site.nonnegative for site in sites}

    def at(self, p: float) -> dict[str, Tensor]:
        """All values; those whose tokens find their own ranges stay as they are."""
        found = dict(self._start)
        for name, sample in self._samples.items():
            grid = fit_range(
                sample.numbers,
                int(self._start[name][2]),
                weights=sample.weights,
                nonnegative=self._nonnegative[name],
                settings=RangeSettings(RangeSearch.P_NORM, p=p),
            )
            found[name] = static_activation(grid.step, grid.zero_point, grid.levels)
        return found


class _Factors:
    """The network with steps of layers and values times factors; only what changes is rounded anew."""

    def __init__(self, network: Network, start: Finalized) -> None:
        self._network, self._start = network, start
        self._logs = [0.0] * len(start.layers)
        self._layers = list(start.layers)
        self._tensors = dict(start.tensors(network))
        self._fixed = [name for name, entry in start.values.items() if len(entry) > 1]
        self._values = dict(start.values)

    @property
    def count(self) -> int:
        """How many factors there are: one for each layer, and then one for each value with one range."""
        return len(self._layers) + len(self._fixed)

    def tensors(self, logs: Sequence[float]) -> dict[str, Tensor]:
        """Tensors of the network with factors of these logarithms."""
        of_layers, of_values = list(map(float, logs))[: len(self._layers)], logs[len(self._layers) :]
        for index, (layer, log) in enumerate(zip(self._network.layers, of_layers, strict=True)):
            if log == self._logs[index]:
                continue
            own, weight = self._start.layers[index], self._network.weight(layer)
            if log:
                steps = [part.rows.steps * np.exp(log) for part in own.parts]
                own = nearest_at(with_steps(own, steps), rows(layer, weight).float())
            self._logs[index], self._layers[index] = log, own
            self._tensors[layer.weight] = from_rows(layer, own.dequantize()).to(weight)
        for name, log in zip(self._fixed, map(float, of_values), strict=True):
            entry = self._start.values[name].clone()
            entry[0] *= np.exp(log)
            self._values[name] = entry
        return self._tensors | value_tensors(self._values)

    def finalized(self) -> Finalized:
        """What `tensors` was last given for."""
        return replace(self._start, layers=tuple(self._layers), values=dict(self._values))
