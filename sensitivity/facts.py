"""What is known of a layer before any score: its strips, its sizes, the options that fit, what it reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..allocator import (
    BOPS,
    FLOAT_BITS,
    FLOAT_OPTION,
    Constraints,
    CostTable,
    LayerCut,
    Rules,
    Unit,
    expand_auto,
    match_rules,
)
from ..errors import InputError
from ..network import Network
from ..quantizer import Option, StepUnit, option_names, parse_option
from .candidates import check_options, cut_of, layer_options
from .profile import Profile
from .site_rules import weights_only

__all__ = [
    "LayerFacts",
    "counted_table",
    "facts_of_network",
    "facts_of_profile",
    "float_work",
    "refuse_tensor_steps",
    "resolve",
    "rules_of",
]


@dataclass(frozen=True, eq=False)
class LayerFacts:
    """One layer, as budgets and constraints see it.

    Attributes
    ----------
    name : str
    cut : LayerCut
        What its strips are.
    macs : int
        Multiply-accumulates for one sample.
    reads : tuple of str
        Names of the values that enter it, one for each of its uses.
    fits : bool array (options,)
        Options that it can take.
    size_bits, strip_bits : int64 array (options,)
        Codes and steps of the whole layer, and of one strip; option codes are not in them.
    """

    name: str
    cut: LayerCut
    macs: int
    reads: tuple[str, ...]
    fits: NDArray[np.bool_]
    size_bits: NDArray[np.int64]
    strip_bits: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        name: str,
        cut: LayerCut,
        macs: int,
        reads: Sequence[str],
        options: Sequence[Option],
        fitting: Iterable[int],
    ) -> LayerFacts:
        """Count a layer's sizes; `fitting` has the indices of the options that fit."""
        fits = np.zeros(len(options), np.bool_)
        fits[list(fitting)] = True
        whole = [option.size_bits(cut.rows, cut.row_weights) for option in options]
        strip = [option.size_bits(cut.rows_per_strip, cut.row_weights) for option in options]
        return cls(name, cut, macs, tuple(reads), fits, np.array(whole, np.int64), np.array(strip, np.int64))


def facts_of_profile(profile: Profile) -> tuple[LayerFacts, ...]:
    """The layers of a profile."""
    options = profile.parsed_options()
    return tuple(
        LayerFacts.of(
            layer.name,
            layer.layer_cut(),
            layer.macs,
            layer.reads,
            options,
            (profile.options.index(score.option) for score in layer.scores),
        )
        for layer in profile.layers
    )


def facts_of_network(
    network: Network, options: Sequence[Option], cut: str | None = None
) -> tuple[LayerFacts, ...]:
    """The layers of a network.

    Parameters
    ----------
    cut : str, optional
        How linear layers are cut, see `LayerCut`.

    Raises
    ------
    InputError
        A layer that no option fits, or an option that fits no layer.
    """
    check_options(network, options, cut)
    return tuple(
        LayerFacts.of(
            layer.name,
            cut_of(layer, cut),
            layer.macs,
            network.reads(layer),
            options,
            layer_options(layer, options, cut),
        )
        for layer in network.layers
    )


def counted_table(
    quantity: str,
    facts: Sequence[LayerFacts],
    options: Sequence[str],
    floats: Mapping[str, int],
    entering: Mapping[str, int] | None = None,
) -> CostTable:
    """What one sample takes, counted from the network.

    ``macs``: the multiply-accumulates of a layer for every point. ``bops``: bit operations,
    ``macs * points * bits * (bits of what enters)``, the latter 32 where activations stay float.

    Parameters
    ----------
    quantity : "macs" or "bops"
    floats : mapping of str to int
        Layers that stay float, with their multiply-accumulates; see `float_work`.
    entering : mapping of str to int, optional
        For every layer that multiplies values the sum over these of ``macs * bits``, see
        `layer_activations`; default: all are floats.
    """
    costs = {name: {FLOAT_OPTION: float(work)} for name, work in float_work(quantity, floats).items()}
    for layer in facts:
        work = layer.macs
        if quantity == BOPS:
            work = layer.macs * FLOAT_BITS if entering is None else entering.get(layer.name, 0)
        costs[layer.name] = {
            text: float(work * option.points * (option.bits if quantity == BOPS else 1))
            for text, option in ((text, parse_option(text)) for text in options)
        }
    return CostTable(quantity, costs)


def float_work(quantity: str, floats: Mapping[str, int]) -> dict[str, int]:
    """What layers that stay float take, for each of them: its multiply-accumulates, times 32 * 32 for bits.

    A float weight counts as 32 bits, and so does what it multiplies, as everywhere where a number is not
    quantized: in a network of half precision too, and where other layers read the same value in low bits.

    Parameters
    ----------
    quantity : "macs" or "bops"
    floats : mapping of str to int
        Layer -> multiply-accumulates for one sample.
    """
    bits = FLOAT_BITS**2 if quantity == BOPS else 1
    return {name: macs * bits for name, macs in floats.items()}


def resolve(constraints: Constraints | None, facts: Sequence[LayerFacts]) -> Constraints:
    """The constraints with the tie ``auto`` replaced by the layers that it means here.

    Raises
    ------
    InputError
        ``auto`` was asked for, and no two layers read the same input.
    """
    names, reads = [layer.name for layer in facts], [layer.reads for layer in facts]
    return expand_auto(constraints or Constraints(), names, reads)


def rules_of(facts: Sequence[LayerFacts], options: Sequence[str], constraints: Constraints) -> Rules:
    """What constraints mean for these layers.

    Raises
    ------
    InputError
        See `match_rules` and `expand_auto`.
    """
    names = [layer.name for layer in facts]
    constraints = weights_only(resolve(constraints, facts))
    fits = np.array([layer.fits for layer in facts])
    return match_rules(constraints, names, options, option_names, fits=fits)


def allowed_options(
    facts: Sequence[LayerFacts], options: Sequence[str], allowed: NDArray[np.bool_]
) -> dict[str, list[str]]:
    """For every layer the options that it may have, of those that are allowed, (layers, options)."""
    return {
        layer.name: [options[column] for column in np.flatnonzero(row).tolist()]
        for layer, row in zip(facts, allowed, strict=True)
    }


def refuse_tensor_steps(options: Sequence[str], allowed: NDArray[np.bool_], unit: Unit) -> None:
    """Refuse options with one step for the whole tensor where a layer has several units.

    Raises
    ------
    InputError
        Names them.
    """
    per_tensor = [
        options[column]
        for column in np.flatnonzero(allowed).tolist()
        if parse_option(options[column]).unit is StepUnit.TENSOR
    ]
    if per_tensor:
        raise InputError(
            f"options {', '.join(per_tensor)} have one step for the whole tensor and cannot be chosen per "
            f"{unit}; leave them out, or choose with --unit layer"
        )
