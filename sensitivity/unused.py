"""What no calibration sample reaches: rows of an embedding without a token, experts that are never chosen.

Their scores are zero, which says that nothing was seen, not that nothing is lost. So they get a floor: what
is known of those that were reached, per use and squared error, for about one use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..network import Data, Layer, LayerCall, Network, batch_size, batches
from ..quantizer import Option, Quantizer
from .candidates import cut_of, layer_options, perturbations

__all__ = ["FLOOR_ERROR", "Floors", "find_floors", "unreached"]

FLOOR_ERROR = 2.0
"""Standard error of a floor over the floor. No score has one above itself, so that floors are known by it."""


@dataclass(frozen=True)
class Floors:
    """Losses of what no sample reached.

    Attributes
    ----------
    loss : Tensor, shape (strips of all layers, options), float64
        The floors; 0 for all that was reached.
    unused : dict of str to int
        Layers in which there are such strips, and how many.
    """

    loss: Tensor
    unused: dict[str, int]


def find_floors(
    network: Network,
    data: Data,
    options: Sequence[Option],
    quantizer: Quantizer,
    strip_loss: Tensor,
    cut: str | None = None,
) -> Floors:
    """Floors for the rows of embeddings and for whole layers whose scores are zero.

    With d the change that an option makes to a row, and n how often a row was looked up, all rows together
    say what a use costs per squared error,

        k(o) = sum_rows loss(row, o) / sum_rows n(row) |d(row, o)|^2.

    A row that no token used gets ``m k(o) |d(row, o)|^2``. By Good and Turing the rows not seen will be used
    as often in so much data as there are rows seen once; m is that number, 1 or more, over the number of rows
    not seen, 1 at most. A layer that nothing but zeros entered, as of an expert that was never chosen, gets
    the same with m = 1 from the layers of its shape whose names differ in numbers alone, or from all, where n
    counts the places that were not zero.

    Channels without effect in a layer that has some keep their zero.

    Parameters
    ----------
    strip_loss : Tensor, shape (strips of all layers, options), float64
        The scores, see `FisherScores.channel_loss`.
    cut : str, optional
        What the strips are, see `LayerCut`.

    Raises
    ------
    InputError
        No layer but embeddings has a score above zero.

    References
    ----------
    I. J. Good, "The population frequencies of species and the estimation of population parameters",
    Biometrika 40, 1953.
    """
    layers = network.layers
    starts = torch.tensor([0, *(cut_of(layer, cut).strips for layer in layers)]).cumsum(0).tolist()
    own = {layer.name: strip_loss[a:b] for layer, a, b in zip(layers, starts[:-1], starts[1:], strict=True)}
    dead = [layer for layer in layers if not own[layer.name].any()]
    tables = [
        layer
        for layer in layers
        if layer.kind == "embedding"
        and not cut_of(layer, cut).inputs
        and layer not in dead
        and not own[layer.name].any(1).all()
    ]
    floors = torch.zeros_like(strip_loss)
    unused: dict[str, int] = {}
    if not dead and not tables:
        return Floors(floors, unused)
    scored = [layer for layer in layers if layer not in dead and layer.kind != "embedding"]
    if dead and not scored:
        raise InputError(
            f"no option changes the network's output on data '{data.name}', so that nothing says what they "
            "cost; check that its output depends on its inputs there, and that the probabilities of its "
            "classes are not all exactly 0 or 1"
        )
    uses = _uses(network, data, tables)
    errors: dict[str, Tensor] = {}

    def error(layer: Layer) -> Tensor:
        if layer.name not in errors:
            errors[layer.name] = _squared_errors(network, layer, options, quantizer, cut)
        return errors[layer.name]

    for layer in [*tables, *dead]:
        if layer in tables:
            count = uses[layer.name]
            missing = ~own[layer.name].any(1)
            cost = own[layer.name].sum(0) / (count[:, None] * error(layer)).sum(0).clamp_min(1e-300)
            expected = min(1.0, max(1, int((count == 1).sum())) / int(missing.sum()))
        else:
            like = [each for each in scored if _family(each) == _family(layer)] or scored
            missing, expected = torch.ones(len(own[layer.name]), dtype=torch.bool), 1.0
            spent = sum(float(uses[each.name]) * error(each).sum(0) for each in like)
            gained = sum(own[each.name].sum(0) for each in like)
            cost = torch.as_tensor(gained) / torch.as_tensor(spent).clamp_min(1e-300)
        place = slice(starts[layers.index(layer)], starts[layers.index(layer) + 1])
        floors[place] = expected * cost * error(layer) * missing[:, None]
        unused[layer.name] = int(missing.sum())
    return Floors(floors, {layer.name: unused[layer.name] for layer in layers if layer.name in unused})


def unreached(loss: Tensor, error: Tensor) -> Tensor:
    """Which strips have no score of their own, but a floor or nothing, (strips,): known by their errors.

    Parameters
    ----------
    loss, error : Tensor, shape (strips, options), float64
        As a profile's arrays have them, floors included.
    """
    return (error == FLOOR_ERROR * loss).all(1)


def _family(layer: Layer) -> tuple[str, tuple[int, ...]]:
    """What experts of one kind have in common, in all layers: the name but for numbers, and the shape."""
    return re.sub(r"\d+", "0", layer.name), layer.shape


def _squared_errors(
    network: Network, layer: Layer, options: Sequence[Option], quantizer: Quantizer, cut: str | None
) -> Tensor:
    """``|dW(o)|^2`` of every strip, shape (strips, options), float64; 0 for options that do not fit."""
    strips, fitting = cut_of(layer, cut), layer_options(layer, options, cut)
    deltas = perturbations(network, layer, options, quantizer, cut)
    found = torch.zeros(strips.strips, len(options), dtype=torch.float64)
    for index in fitting:
        squares = strips.to_rows(deltas[:, index]).double().square().sum(1)
        found[:, index] = squares.view(strips.strips, -1).sum(1).cpu()
    return found


def _uses(network: Network, data: Data, tables: Sequence[Layer]) -> Mapping[str, Tensor]:
    """How often each row of the tables was looked up, and at how many places other layers read no zeros."""
    rows = {layer.name: layer.channels for layer in tables}
    uses = {layer.name: torch.zeros(rows.get(layer.name, 1), dtype=torch.float64) for layer in network.layers}

    def count(call: LayerCall, entering: Tensor, leaving: Tensor) -> Tensor:
        name = call.layer.name
        if call.is_lookup:
            if name in rows:
                uses[name] += torch.bincount(entering.flatten().cpu(), minlength=rows[name]).double()
        elif call.layer.kind == "conv":
            uses[name] += len(entering)
        else:
            uses[name] += float(entering.any(-1).sum())
        return leaving

    with torch.inference_mode():
        for part in batches(len(data.inputs), batch_size(network)):
            network.run(data.inputs[part].to(network.device), on_layer=count)
    return uses
