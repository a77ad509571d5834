"""A plan in the terms of another toolkit: bits and steps of every layer, exact, or lowered on request."""

from __future__ import annotations

import json
import pprint
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..allocator import LayerPlan, Plan
from ..documents import replace_file
from ..errors import InputError
from ..network import Layer, load_program
from ..quantizer import Option, StepUnit, parse_option
from .network import PROGRAM, read_run
from .recipe_forms import Scheme, autoround, compressed_tensors, modelopt, nncf, torchao

__all__ = ["TOOLKITS", "Recipe", "Toolkit", "export_recipe", "make_recipe"]

ALL_WIDTHS = tuple(range(2, 9))


@dataclass(frozen=True)
class Toolkit:
    """What a toolkit can express, and its document.

    Parameters
    ----------
    name : str
    form : callable
        From the scheme of every layer to the document.
    suffix : str
        ``.json``, or ``.py`` where JSON cannot hold the document.
    widths, grouped, convolutions : tuple of int
        Bits that a matrix can have with a step per channel, and with a step per group, and weights of more
        than two axes with a step per channel; ascending.
    tensor_steps : bool
        Whether one step for the whole tensor can be said.
    divisor : int
        What both sides of a matrix must be multiples of.
    """

    name: str
    form: Callable[[Sequence[Scheme]], dict[str, Any]]
    suffix: str = ".json"
    widths: tuple[int, ...] = ALL_WIDTHS
    grouped: tuple[int, ...] = ALL_WIDTHS
    convolutions: tuple[int, ...] = ()
    tensor_steps: bool = True
    divisor: int = 1


TOOLKITS = {
    toolkit.name: toolkit
    for toolkit in (
        Toolkit("torchao", torchao, tensor_steps=False),
        Toolkit("compressed-tensors", compressed_tensors),
        Toolkit("modelopt", modelopt, suffix=".py", convolutions=ALL_WIDTHS),
        Toolkit("autoround", autoround, divisor=32),
        # In its backend for torch; other widths and 4-bit convolutions it has for other frameworks only.
        Toolkit("nncf", nncf, widths=(4, 8), grouped=(4,), convolutions=(8,), tensor_steps=False),
    )
}


@dataclass(frozen=True)
class Recipe:
    """A plan as a toolkit's document.

    Attributes
    ----------
    toolkit : str
    document : dict
    lowered : dict of str to str
        Layer to what became of it, where the toolkit cannot store it as planned.
    """

    toolkit: str
    document: dict[str, Any]
    lowered: dict[str, str]

    @property
    def text(self) -> str:
        """The document as a file: JSON, or Python where its keys are no texts."""
        if TOOLKITS[self.toolkit].suffix == ".json":
            return json.dumps(self.document, indent=2) + "\n"
        return f"config = {pprint.pformat(self.document, width=100, sort_dicts=False)}\n"


def make_recipe(
    plan: Plan, toolkit: str, *, lower: bool = False, unlike: Mapping[str, str] | None = None
) -> Recipe:
    """The plan in a toolkit's terms: every layer's bits and steps, symmetric, weights alone.

    Layers go by their names in the plan, which are those of the modules.

    Parameters
    ----------
    toolkit : str
        One of `TOOLKITS`.
    lower : bool
        Give a layer that the toolkit cannot store as planned the next thing that is not less: as many bits as
        its widest channel and all its points together have, steps as fine as its finest; else floats.
    unlike : mapping of str to str, optional
        Layers that no toolkit is told to quantize, with what they are that it would not take or take wrongly.

    Raises
    ------
    InputError
        Not such a toolkit, or, unless `lower` is set, a layer that it cannot store as planned; names the
        layer and why.
    """
    if toolkit not in TOOLKITS:
        raise InputError(f"'{toolkit}' is not a toolkit with recipes; these are {', '.join(TOOLKITS)}")
    able = TOOLKITS[toolkit]
    schemes: list[Scheme] = []
    lowered: dict[str, str] = {}
    if plan.activations:
        if not lower:
            raise InputError(
                f"the plan stores {len(plan.activations)} values in low bits, and recipes for {toolkit} are "
                "of weights alone; use --format onnx, or export with --lower, which leaves values float"
            )
        lowered["activations"] = "recipes are of weights alone: float"
    for layer in plan.layers:
        scheme, why = _scheme(layer, able)
        if unlike and layer.name in unlike:
            scheme, why = Scheme(layer.name, None), unlike[layer.name]
        stored = _stored_as(scheme)
        if why and not lower:
            raise InputError(
                f"layer '{layer.name}' cannot be stored in {toolkit} as planned: {why}; plan otherwise, or "
                f"export with --lower, which makes it {stored}"
            )
        if why:
            lowered[layer.name] = f"{why}: {stored}"
        schemes.append(scheme)
    return Recipe(toolkit, able.form(schemes), lowered)


def export_recipe(run: str | Path, path: str | Path, toolkit: str, *, lower: bool = False) -> Recipe:
    """Write the recipe of a finished run's plan.

    Raises
    ------
    InputError
        As `make_recipe`; the run is missing or damaged, or the file cannot be written.
    """
    packed = read_run(run)
    network = load_program(Path(run) / PROGRAM, packed.tensors())
    unlike = {layer.name: why for layer in network.layers if (why := _unlike(layer))}
    recipe = make_recipe(packed.plan, toolkit, lower=lower, unlike=unlike)
    with replace_file(Path(path)) as temporary:
        temporary.write_text(recipe.text, encoding="utf-8")
    return recipe


def _unlike(layer: Layer) -> str:
    """What a layer is where it is not a linear layer's or convolution's weight, as toolkits know them."""
    if layer.lookups:
        return "it is an embedding, and only layers that multiply can be"
    if layer.transposed:
        return "its weight has its inputs first, and only linear layers and convolutions can be"
    if not layer.weight.endswith(".weight"):
        return "it is no module of its own, and only linear layers and convolutions can be"
    return ""


def _scheme(layer: LayerPlan, able: Toolkit) -> tuple[Scheme, str]:
    """The least that the toolkit has for a layer, and why it is not what is planned, if it is not."""
    options = sorted({parse_option(text) for text in layer.strip_options()})
    planned = max(option.bits * option.points for option in options)
    group = _finest_group(layer, options)
    tensor = all(option.unit is StepUnit.TENSOR for option in options) and not group
    matrix = len(layer.shape) == 2
    widths = able.convolutions if not matrix else able.grouped if group else able.widths
    bits = next((width for width in widths if width >= planned), 0)
    floating = ""
    if not matrix and not able.convolutions:
        floating = "it is a convolution, and only matrices can be"
    elif not bits:
        what = "with steps per group" if group else "in all"
        floating = f"{planned} bits {what}, and it has at most {widths[-1]}"
    elif not matrix and group:
        floating = "it is a convolution with steps per group"
    elif any(side % able.divisor for side in layer.shape[:2]):
        floating = f"its sides are no multiples of {able.divisor}"
    elif group and layer.shape[1] % group:
        floating = f"its last group has less than {group} weights"
    if floating:
        return Scheme(layer.name, None), floating
    unit = StepUnit.GROUP if group else StepUnit.CHANNEL
    if tensor and able.tensor_steps:
        unit = StepUnit.TENSOR
    why = _difference(layer, options, tensor, able)
    if not why and bits != planned:
        why = f"it has {planned} bits, and widths are {', '.join(map(str, widths))}"
    return Scheme(layer.name, bits, unit, group), why


def _difference(layer: LayerPlan, options: Sequence[Option], tensor: bool, able: Toolkit) -> str:
    if len(options) > 1:
        what = "inputs" if layer.cut else "channels"
        return f"its {what} have {', '.join(map(str, options))}, and a layer has one width"
    if options[0].points > 1:
        return f"{options[0]} is a sum of points"
    if tensor and not able.tensor_steps:
        return "it has one step for the tensor, and steps are per channel"
    return ""


def _finest_group(layer: LayerPlan, options: Sequence[Option]) -> int:
    """The least number of inputs that share a step; 0 where a whole channel does."""
    groups = [option.group for option in options if option.group]
    if layer.cut:
        groups.append(layer.layer_cut().inputs)
    return min(groups, default=0)


def _stored_as(scheme: Scheme) -> str:
    if scheme.bits is None:
        return "float"
    steps = f"group of {scheme.group}" if scheme.group else scheme.unit.value
    return f"{scheme.bits} bits with a step per {steps}"
