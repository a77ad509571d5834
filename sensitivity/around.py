"""A network under a choice: what it loses there, and where it would lose less."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..allocator import LayerCut
from ..errors import InputError
from ..network import (
    Data,
    Layer,
    Network,
    batch_size,
    batches,
    float_logits,
    from_rows,
    kl_divergence,
    measure_quality,
    rows,
    widened,
)
from ..quantizer import Option, Quantizer, parse_option
from .candidates import OptionWeights, cut_of, layer_options, perturbations
from .fisher import FisherSettings, score_fisher
from .joint import sum_strips, unit_factors
from .task import Task

__all__ = ["Around"]

PARTS = 8
"""Parts of the data whose slopes are compared: what differs between them as much as it is large is noise."""


class Around:
    """The network under a choice: its true loss, the slope of it, and the curvature around it.

    Parameters
    ----------
    data : Data
        What slope and curvature are computed from.
    deciding : Data
        What says which choice is returned.
    weights : callable, optional
        Weights of the options in place of those rounded to nearest.
    """

    def __init__(
        self,
        network: Network,
        data: Data,
        deciding: Data,
        task: Task,
        settings: FisherSettings,
        weights: OptionWeights | None = None,
    ) -> None:
        self._network, self._data, self._deciding, self._task = network, data, deciding, task
        self._options = [parse_option(text) for text in task.profile.options]
        self._quantizer = Quantizer.from_settings(task.profile.quantizer)
        self._row_of = {layer.name: row for row, layer in enumerate(network.layers)}
        cut = task.profile.cut
        self._settings = replace(settings, cut=cut)
        self._cuts = [cut_of(layer, cut) for layer in network.layers]
        self._changes = [
            perturbations(network, layer, self._options, self._quantizer, cut, weights)
            for layer in network.layers
        ]
        self._reference = float_logits(network, data)
        self._wide = network.widened()
        self._wide_data = data.taken_by(self._wide)
        self._wide_reference = (
            self._reference if self._wide is network else float_logits(self._wide, self._wide_data)
        )
        self._deciding_reference = float_logits(network, deciding)
        activations = task.profile.activations
        self._values = {} if activations is None else activations.entries(task.widths)

    def tensors(self, choice: NDArray[np.intp]) -> dict[str, Tensor]:
        """The weights under a choice, by tensor name, and what quantizes values."""
        found = dict(self._values)
        posed = self._task.posed
        for row, layer in enumerate(self._network.layers):
            weight = self._network.weight(layer)
            strips = choice[posed.member[posed.starts[row] : posed.starts[row + 1]]]
            cut, changes = self._cuts[row], self._changes[row]
            columns = torch.from_numpy(strips).to(weight.device)
            if cut.inputs:
                wide = columns.repeat_interleave(cut.inputs)
                change = changes.gather(1, wide.expand(layer.channels, 1, -1))[:, 0]
            else:
                change = changes[torch.arange(layer.channels, device=weight.device), columns]
            changed = rows(layer, weight).to(torch.float32) + change
            found[layer.weight] = from_rows(layer, changed).to(weight.dtype)
        return found

    def loss(self, choice: NDArray[np.intp]) -> float:
        """Measured KL of the float output to that under the choice, on the samples of the moves."""
        return self.loss_with(choice, {})

    def loss_with(self, choice: NDArray[np.intp], tensors: Mapping[str, Tensor]) -> float:
        """The same with some weights replaced once more."""
        changed = self.tensors(choice) | dict(tensors)
        return measure_quality(self._network, self._data, changed, self._reference).loss

    def deciding_loss(self, choice: NDArray[np.intp]) -> float:
        """Measured KL of the float output to that under the choice, on the samples that decide."""
        changed = self.tensors(choice)
        return measure_quality(self._network, self._deciding, changed, self._deciding_reference).loss

    def slope(self, choice: NDArray[np.intp]) -> NDArray[np.float64]:
        """< dL/dW, dW(o) > of every option of every unit, (units, options), shrunk by its own noise.

        With the slopes of several parts of the data, of mean m and variance of that mean v, both relative to
        the chosen option, what is kept is ``m max(0, 1 - v / m^2)``.
        """
        units = np.arange(self._task.problem.units)
        order = torch.randperm(
            len(self._data.inputs), generator=torch.Generator().manual_seed(self._settings.seed)
        )
        slopes = np.stack([self.part_slope(choice, part.numpy()) for part in order.chunk(PARTS)])
        slopes -= slopes[:, units, choice][:, :, None]
        mean = slopes.mean(axis=0)
        noise = slopes.var(axis=0, ddof=1) / len(slopes) if len(slopes) > 1 else 0.0
        kept: NDArray[np.float64] = mean * np.maximum(0.0, 1 - noise / np.maximum(mean**2, 1e-300))
        return kept

    def curvature_at_float(self) -> NDArray[np.float32]:
        """Factors of the Fisher information at the float weights: the profile's, from all of its samples."""
        arrays = self._task.arrays
        if arrays is None or (arrays.factors is None and not all(self._task.posed.whole)):
            return self._factors(None)
        return unit_factors(self._task)

    def curvature(self, choice: NDArray[np.intp]) -> NDArray[np.float32]:
        """Factors of the Fisher information around a choice, (units, options, rows)."""
        return self._factors(self.tensors(choice))

    def _factors(self, around: Mapping[str, Tensor] | None) -> NDArray[np.float32]:
        scores = score_fisher(
            self._network,
            self._data,
            self._options,
            self._quantizer,
            self._settings,
            around=around,
            weights=self._weights_of,
        )
        if scores.factors is None:
            raise InputError(
                f"moves need the effects of {len(self._options)} options on many samples at once, and for so "
                "many strips of weights they do not fit into 1 GiB; refine with fewer options"
            )
        return self._of_units(scores.factors.numpy() / np.float32(scores.samples**0.5))

    def _weights_of(self, layer: Layer, options: Sequence[Option], cut: LayerCut) -> Tensor:
        """What every option makes of a layer, which is computed once."""
        fitting = layer_options(layer, self._options, self._settings.cut)
        weight = rows(layer, self._network.weight(layer)).to(torch.float32)
        return weight[:, None] + self._changes[self._row_of[layer.name]][:, fitting]

    def part_slope(self, choice: NDArray[np.intp], part: NDArray[np.intp]) -> NDArray[np.float64]:
        """< dL/dW, dW(o) > over some samples, (units, options)."""
        tensors = {name: widened(tensor) for name, tensor in self.tensors(choice).items()}
        for layer in self._network.layers:
            tensors[layer.weight].requires_grad_()
        with torch.enable_grad():
            for piece in batches(len(part), batch_size(self._network)):
                index = torch.from_numpy(part[piece])
                given = self._wide_data.inputs[index].to(self._wide.device)
                logits = self._wide.run(given, tensors=tensors)
                reference = self._wide_reference[index].to(logits.device)
                (kl_divergence(reference, logits).sum() / len(part)).backward()  # type: ignore[no-untyped-call]
        strips = []
        for row, layer in enumerate(self._network.layers):
            gradient = tensors[layer.weight].grad
            assert gradient is not None
            product = rows(layer, gradient).to(torch.float32)[:, None] * self._changes[row]
            inputs = self._cuts[row].inputs
            # Strips of inputs are sums over all channels, the others over a channel's inputs.
            cells = product.reshape(*product.shape[:2], -1, inputs or product.shape[2]).sum(3)
            strips.append((cells.sum(0).T if inputs else cells[:, :, 0]).double().cpu())
        slope: NDArray[np.float64] = self._of_units(torch.cat(strips)[None].numpy())[..., 0]
        return slope

    def _of_units(self, strips: NDArray[np.floating[Any]]) -> NDArray[Any]:
        """Sums over the strips of every unit, (units, options, rows)."""
        return sum_strips(strips, self._task.posed.member, self._task.problem.units)
