"""What every method of reconstruction is: from a plan and calibration data to integer weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from ..allocator import Plan
from ..network import Data, Network
from .finalize import Finalized, LayersOnDemand, NearestLayers, finalize_nearest
from .values import plan_values

__all__ = ["Method", "Nearest", "Progress", "walk_of"]

Progress: TypeAlias = Callable[[int, int], None]


def walk_of(progress: Progress | None, number: int, walks: int) -> Progress | None:
    """What one of several walks through all layers tells, as a part of all of them."""
    if progress is None:
        return None
    return lambda done, total: progress(number * total + done, walks * total)


class Method(Protocol):
    """Settings that know how to carry out a plan.

    All methods keep the plan's options and so its complexity, take any mix of widths and points, and give the
    same weights for the same arguments. Nearest rounding keeps the steps of the plan's quantizer; the others
    find better ones, as many of them and of 16 bits too.
    """

    def finalize(
        self,
        network: Network,
        plan: Plan,
        data: Data,
        progress: Progress | None = None,
        store: Path | None = None,
    ) -> Finalized:
        """Integer weights of the plan.

        Parameters
        ----------
        data : Data
            Calibration inputs; labels are not read.
        progress : callable, optional
            Told (steps done, steps in all).
        store : Path, optional
            Folder for what is finished, from which an interrupted run goes on to the same result.

        Raises
        ------
        InputError
            The plan does not fit the network.
        """
        ...


@dataclass(frozen=True)
class Nearest:
    """Round every weight to the nearest value of its grid; reads no data, and has nothing worth keeping."""

    def finalize(
        self,
        network: Network,
        plan: Plan,
        data: Data,
        progress: Progress | None = None,
        store: Path | None = None,
    ) -> Finalized:
        """Integer weights of the plan; see `finalize_nearest`.

        Those of a network whose tensors are streamed are made as they are asked for.
        """
        if not network.is_streamed:
            return finalize_nearest(network, plan, on_layer=progress)
        nearest, layers = NearestLayers(network, plan), network.layers
        found = LayersOnDemand([layer.name for layer in layers], lambda at: nearest.of(layers[at]))
        return Finalized(found, values=plan_values(plan))
