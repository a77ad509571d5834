"""One pass forward and one back through a network, segment by segment, for all samples.

Forward keeps the values at the cuts between segments. Back takes the last segment first: each is run again
from what was kept, with gradients, and hands the cotangents of what enters it to the segment before. So at
no time more than one segment has its weights, activations and gradients in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from ..network import (
    ActivationStore,
    LayerCall,
    Network,
    Segment,
    Values,
    kept_values,
    learned_values,
)

__all__ = ["CARRIED", "Cotangents", "LayerUse", "Returned", "Sweep", "WithCotangents"]

Cotangents: TypeAlias = list[dict[str, Tensor]]
"""For each draw the cotangents of the values at a cut, by name; a value without one has none.

Effects of layers that are first used before the cut are beside them, see `CARRIED`.
"""

WithCotangents: TypeAlias = tuple[Tensor, list[Tensor | None]]
"""A value and its cotangent for each draw; None where the output does not depend on it."""

CARRIED = "effect of "
"""Before a layer's name: what its uses behind the cut do, (strips, samples, options).

It goes with the cotangents where the layer is first used before the cut.
"""


@dataclass(frozen=True, eq=False)
class LayerUse:
    """One use of a layer on some samples: what entered, and for each draw the cotangent of what came out."""

    call: LayerCall
    entering: Tensor
    received: list[Tensor]


@dataclass(frozen=True, eq=False)
class Returned:
    """What the way back through a segment finds for some samples.

    Attributes
    ----------
    uses : list of LayerUse
        Of the segment's layers, those used again included.
    values : dict
        The values that were asked for and are computed here.
    entering : Cotangents
        Of what enters the segment.
    """

    uses: list[LayerUse]
    values: dict[str, WithCotangents]
    entering: Cotangents


@dataclass
class Sweep:
    """The way forward and back.

    Attributes
    ----------
    network : Network
    segments : sequence of Segment
        From the first step to the last.
    chunks : sequence of Tensor
        The network's inputs, cut into the samples that are run at once.
    store : ActivationStore
        Where values and cotangents are kept.
    watched : frozenset of str
        Values whose cotangents are wanted; without them only what depends on a layer has any.
    """

    network: Network
    segments: Sequence[Segment]
    chunks: Sequence[Tensor]
    store: ActivationStore
    watched: frozenset[str] = frozenset()
    _entering: list[list[Values]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._learned = learned_values(self.network.schedule)

    def forward(self, last: int) -> None:
        """Keep what enters the segments 1 to `last`; each is run once for each chunk."""
        schedule, tensors = self.network.schedule, self.network.tensors
        self._entering = [[schedule.start([chunk.to(self.network.device)]) for chunk in self.chunks]]
        for segment in self.segments[:last]:
            after: list[Values] = []
            for values in self._entering[-1]:
                # Not the inference mode: what it makes cannot be used under autograd.
                with torch.no_grad():
                    running = self._here(values)
                    schedule.advance(running, tensors, segment.begin, segment.end)
                after.append(kept_values(running, self.store))
            self._entering.append(after)
            self.store.rest()

    def back(self, number: int, chunk: int, leaving: Cotangents | Callable[[Tensor], Cotangents]) -> Returned:
        """Run a segment with gradients for one chunk of samples.

        Parameters
        ----------
        leaving : Cotangents or callable
            Of the values that leave the segment; of the last one, from the network's output to its cotangents
            under the name of the output.
        """
        segment, schedule = self.segments[number], self.network.schedule
        names = {layer.name for layer in (*segment.layers, *segment.again)}
        uses: list[tuple[LayerCall, Tensor, Tensor]] = []

        def watch(call: LayerCall, entering: Tensor, leaving: Tensor) -> Tensor:
            if call.layer.name in names:
                if not leaving.requires_grad:
                    leaving = leaving.detach().requires_grad_()
                uses.append((call, entering.detach(), leaving))
            return leaving

        seen: dict[str, Tensor] = {}

        def look(name: str, value: Tensor) -> Tensor:
            if name in self.watched:
                seen[name] = value if value.requires_grad else value.detach().requires_grad_()
                return seen[name]
            return value

        values = self._here(self._entering[number][chunk])
        entries = {
            name: value.detach().requires_grad_()
            for name, value in values.items()
            if (self.watched or name in self._learned)
            and isinstance(value, Tensor)
            and value.is_floating_point()
        }
        values |= entries
        with torch.enable_grad():
            schedule.advance(values, self.network.tensors, segment.begin, segment.end, watch, look)
        given = leaving if isinstance(leaving, list) else leaving(values[schedule.output])
        sources = [use[2] for use in uses]
        wanted = [*sources, *entries.values(), *seen.values()]
        found: list[tuple[Tensor | None, ...]] = []
        for draw, cotangents in enumerate(given):
            reached = [name for name in cotangents if name in values and values[name].requires_grad]
            found.append(
                torch.autograd.grad(
                    [values[name] for name in reached],
                    wanted,
                    [cotangents[name].to(self.network.device) for name in reached],
                    retain_graph=draw + 1 < len(given),
                    allow_unused=True,
                )
            )
        received = [
            [torch.zeros_like(source) if each[at] is None else each[at] for each in found]
            for at, source in enumerate(sources)
        ]
        inner = len(sources) + len(entries)
        back = [
            {
                name: self.store.keep(gradient)
                for name, gradient in zip(entries, each[len(sources) : inner], strict=True)
                if gradient is not None
            }
            for each in found
        ]
        return Returned(
            [
                LayerUse(call, entering, gradients)  # type: ignore[arg-type]
                for (call, entering, _), gradients in zip(uses, received, strict=True)
            ],
            {
                name: (value.detach(), [each[inner + at] for each in found])
                for at, (name, value) in enumerate(seen.items())
            },
            back,
        )

    def drop(self, number: int) -> None:
        """Forget what entered a segment that is done."""
        self._entering[number] = []
        self.store.rest()

    def _here(self, values: Values) -> Values:
        device = self.network.device
        return {
            name: value.to(device) if isinstance(value, Tensor) else value for name, value in values.items()
        }
