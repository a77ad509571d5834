"""Running from the middle: everything before a layer is computed once, everything after it many times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from ..errors import InputError
from .activation import activation_entries
from .layer import Layer
from .schedule import LayerHook, Values, tensors_in

if TYPE_CHECKING:
    from .network import Network

__all__ = ["Replay"]


class Replay:
    """A run that pauses just before a layer (the cut) and can be finished from there again and again.

    Only the values that later steps read are kept, so memory is the width of the network at the cut.
    """

    def __init__(self, network: Network, inputs: tuple[Tensor, ...]) -> None:
        self._network = network
        self._values: Values = network.schedule.start(inputs)
        self._cut = 0

    def advance(self, layer: Layer) -> None:
        """Move the cut to just before the layer's first use.

        Raises
        ------
        InputError
            The cut is already past that use: take layers in network order.
        """
        schedule = self._network.schedule
        target = schedule.position[layer.nodes[0]]
        if target < self._cut:
            raise InputError(
                f"layer '{layer.name}' is first used before the cut of this replay; "
                "take layers in the order of Network.layers, or start another replay"
            )
        schedule.advance(self._values, self._network.tensors, self._cut, target)
        self._cut = target

    def advance_to(self, value: str) -> None:
        """Move the cut to just before a value is computed; an input has no such place but the beginning.

        Raises
        ------
        InputError
            The cut is already past that value: take values in the order of the program.
        """
        schedule = self._network.schedule
        target = schedule.position.get(value, 0)
        if target < self._cut:
            raise InputError(
                f"value '{value}' is computed before the cut of this replay; take values in the order of the "
                "program, or start another replay"
            )
        schedule.advance(self._values, self._network.tensors, self._cut, target)
        self._cut = target

    def finish(
        self, tensors: Mapping[str, Tensor] | None = None, *, on_layer: LayerHook | None = None
    ) -> Tensor:
        """Run from the cut to the end with some tensors replaced; the cut and its values stay as they are.

        Equals `Network.run` on the same inputs with the same `tensors`, bit for bit.

        Raises
        ------
        InputError
            A replaced tensor is read before the cut, where the replacement would have no effect.
        """
        schedule = self._network.schedule
        overlay = self._network.overlay(tensors)
        for name in activation_entries(tensors or {}):
            if schedule.position.get(name, 0) < self._cut:
                raise InputError(
                    f"value '{name}' is computed before the cut of this replay; start another replay"
                )
        for name in tensors or {}:
            if schedule.first_read.get(name, self._cut) < self._cut:
                raise InputError(
                    f"tensor '{name}' is read before the cut of this replay; start another replay"
                )
        values = dict(self._values)
        schedule.advance(values, overlay, self._cut, len(schedule.steps), on_layer)
        output: Tensor = values[schedule.output]
        return output

    @property
    def live_bytes(self) -> int:
        """Bytes of the values kept at the cut, views of one storage counted once."""
        storages = {}
        for value in self._values.values():
            for tensor in tensors_in(value):
                storage = tensor.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
        return sum(storages.values())
