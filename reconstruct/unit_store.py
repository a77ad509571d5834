"""Finished units of a method on disk, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..allocator import Plan
from ..documents import replace_file
from ..errors import InputError
from ..network import Data, Network, activation_entries, fingerprint
from .finalize import Finalized, LayersOnDemand, StoredLayer, value_tensors

__all__ = ["UnitStore"]

# No layer has a name that begins so.
BIAS = "bias://"


class UnitStore:
    """One file for every unit of a walk, written when the unit is done.

    Parameters
    ----------
    folder : Path or None
        None keeps nothing.
    key : str
        What the units belong to: units under another key are not seen.
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self._folder = None if folder is None else folder / hashlib.sha256(key.encode()).hexdigest()[:16]

    @classmethod
    def of(cls, folder: Path | None, method: object, network: Network, plan: Plan, data: Data) -> UnitStore:
        """The store of a method's run; `method` is told apart by its `repr`."""
        if folder is None:
            return cls(None, "")
        values = [
            (value.name, value.option, value.chosen.step, value.chosen.zero_point)
            for value in plan.activations
        ]
        of = fingerprint(network), fingerprint(data), plan.assignment, plan.quantizer, values
        return cls(folder, f"{method!r} {of!r}")

    def save(
        self,
        number: int,
        layers: Iterable[StoredLayer],
        biases: Mapping[str, Tensor] | None = None,
        values: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Keep the codes and steps of a unit, and its biases and what quantizes values where they change."""
        if self._folder is None:
            return
        tensors = {name: entry.cpu() for name, entry in value_tensors(values or {}).items()}
        tensors |= {f"{BIAS}{name}": bias.contiguous().cpu() for name, bias in (biases or {}).items()}
        for layer in layers:
            for index, part in enumerate(layer.parts):
                tensors[f"{layer.name}/{index}/codes"] = part.rows.codes.contiguous().cpu()
                tensors[f"{layer.name}/{index}/steps"] = part.rows.steps.contiguous().cpu()
        with replace_file(self._folder / f"{number}.safetensors") as path:
            save_file(tensors, path)

    def load(self, number: int, starts: Iterable[StoredLayer]) -> Finalized | None:
        """A unit as it was kept, or None; `starts` are its layers with the plan's parts and any codes."""
        if self._folder is None:
            return None
        path = self._folder / f"{number}.safetensors"
        try:
            tensors = load_file(path)
            biases = {
                name.removeprefix(BIAS): tensor for name, tensor in tensors.items() if name.startswith(BIAS)
            }
            filled = tuple(_filled(layer, tensors) for layer in starts)
            return Finalized(filled, biases, activation_entries(tensors))
        except (OSError, SafetensorError, KeyError):
            # Never written, or not whole: the unit is done again.
            return None

    def on_demand(self, layers: Mapping[int, StoredLayer]) -> LayersOnDemand:
        """Layers that are each a unit of its own, read when they are asked for.

        Parameters
        ----------
        layers : mapping of int to StoredLayer
            The numbers of their units, and the layers with the plan's parts; in network order.
        """
        numbers, frames = list(layers), list(layers.values())

        def read(place: int) -> StoredLayer:
            found = self.load(numbers[place], [frames[place]])
            if found is None:
                raise InputError(
                    f"the weights of layer '{frames[place].name}' are no longer where they were kept while "
                    "those of other layers were found; finalize again"
                )
            return found.layers[0]

        return LayersOnDemand([frame.name for frame in frames], read)


def _filled(layer: StoredLayer, tensors: Mapping[str, Tensor]) -> StoredLayer:
    parts = []
    for index, part in enumerate(layer.parts):
        codes, steps = (
            tensors[f"{layer.name}/{index}/{what}"].to(like.device)
            for what, like in (("codes", part.rows.codes), ("steps", part.rows.steps))
        )
        parts.append(replace(part, rows=replace(part.rows, codes=codes, steps=steps)))
    return replace(layer, parts=tuple(parts))
