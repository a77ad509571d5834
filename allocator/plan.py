"""The plan document: how every layer is stored, what that costs, and what is proven and measured about it.

Plans are made to be read, compared and edited by hand: to change a layer, change its `option`, or move
channels between the ranges in its `strips`. Sizes and costs in an edited plan are counted again, and its
budgets and constraints checked again, by who uses it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ..documents import read_document, write_document
from ..errors import InputError
from .activation_plan import ActivationPlan, LiveStep
from .constraints import Constraints
from .layer_plan import Bits, Document, LayerPlan, Size, Text
from .solution import Certificate
from .tolerance import Drop, Search
from .unit import parse_unit

__all__ = [
    "Complexity",
    "Guard",
    "Measured",
    "Plan",
    "Reconstruction",
    "Refinement",
    "assignment_digest",
    "check_layers",
    "read_plan",
    "write_plan",
]


Cost = Annotated[float, Field(ge=0)]


class Complexity(Document):
    """What the plan weighs: ``average_bits = (size_bits - fixed_bits) / weight_count``.

    Parameters
    ----------
    size_bits : int
        Bits of the whole packed network: quantized weights with all overheads, and `fixed_bits`.
    average_bits : float
        Stored bits per quantized weight: codes, steps, zero points and width codes.
    fixed_bits : int
        Bits of what is not quantized: biases, norms, every other parameter and buffer that ships.
    float_bits : int
        Bits of the whole float network.
    weight_count : int
        Number of quantized weights.
    costs : dict of str to float
        Totals of further quantities: ``bops`` where a budget limits it, and every table that was given;
        ``act_memory``, in bytes for one sample, where activations are stored in low bits.
    """

    size_bits: Bits
    average_bits: float = Field(ge=0)
    fixed_bits: Bits
    float_bits: Bits
    weight_count: Size
    costs: dict[Text, Cost] = Field(default_factory=dict)


class Measured(Document):
    """Quality of the finished network on data it was not planned on, or that was named.

    Parameters
    ----------
    loss : float
        KL of the float output to the quantized output, mean over samples, nats.
    standard_error : float
        Standard error of that mean.
    samples : int
        Number of samples (tokens).
    data : str
        Name of the data.
    accuracy, float_accuracy : float, optional
        Share of right answers, 0 to 1, of the quantized and of the float network, where labels exist.
    perplexity, float_perplexity : float, optional
        ``exp`` of the mean cross-entropy per token, where there is a label per token.
    context : int, optional
        Tokens of a sample, where samples are token ids.
    drop : Drop, optional
        How much worse than the float network on the same samples, with its interval, where it was asked for.
    """

    loss: float
    standard_error: float = Field(ge=0)
    samples: Size
    data: Text
    accuracy: float | None = Field(default=None, ge=0, le=1)
    float_accuracy: float | None = Field(default=None, ge=0, le=1)
    perplexity: float | None = Field(default=None, ge=1)
    float_perplexity: float | None = Field(default=None, ge=1)
    context: Size | None = None
    drop: Drop | None = None


class Guard(Document):
    """The comparison with the best uniform option that fits the budget, both measured.

    Parameters
    ----------
    option : str
        The uniform option; with that of the first and the last layer where they are an exception.
    uniform_loss, plan_loss : float
        Measured loss of the uniform network and of the solved plan.
    kept : "plan" or "uniform"
        Which of the two this document describes.
    data : str
        Name of the data on which the two were compared.
    """

    option: Text
    uniform_loss: float
    plan_loss: float
    kept: Literal["plan", "uniform"]
    data: Text


class Refinement(Document):
    """What moving the plan by its measured loss took and gave.

    Parameters
    ----------
    evaluations : int
        Moves that were measured.
    accepted : int
        Moves to a plan that was better than all before on the samples that decide.
    start_loss, loss : float
        Measured on the samples that decide, before and after; scores of what no sample reaches are added.
    data : str
        Name of the data.
    """

    evaluations: Bits
    accepted: Bits
    start_loss: float
    loss: float
    data: Text


class Reconstruction(Document):
    """How the integer weights were found.

    Parameters
    ----------
    method : str
        ``nearest``, ``gptq``, ``adaquant``, ``lapq``, ``adaround`` or ``brecq``.
    choices : dict
        What was chosen of a method that learns and is not its default, such as ``iterations``.
    corrections : tuple of str
        What was corrected after it: ``bias``, ``batch-norm`` or ``tune``.
    compared : dict of str to float
        Where the method was chosen automatically: the least loss on `data` with each, measured, or as a quick
        look lets expect.
    scores : dict of str to float
        Where plans by several kinds of scores competed: what made the weights that were scored, and the least
        loss of its plans on `data`.
    data : str
        Name of the calibration data.
    """

    method: Text
    choices: dict[Text, str | int | float] = Field(default_factory=dict)
    corrections: tuple[Text, ...] = ()
    compared: dict[Text, Cost] = Field(default_factory=dict)
    scores: dict[Text, Cost] = Field(default_factory=dict)
    data: Text


class Plan(Document):
    """A chosen storage for every layer, with its proof and, once measured, its quality.

    Parameters
    ----------
    version : 6
        Version of this document's form.
    preset : str, optional
        The bundle of settings that was asked for; options on the command line may have changed some of them.
    unit : str
        What options were chosen for, such as ``layer`` or ``tile:16``; see `parse_unit`.
    budgets : tuple of str
        The budgets as given, such as ``4b``, ``1.2MB`` or ``latency=3.5``; all of them are kept.
    constraints : Constraints, optional
        The rules that the choice keeps, where there are any; excluded layers are not in `layers`.
    tables : dict, optional
        Further quantities: name -> layer -> option -> cost, for the options that the layers may have.
    complexity : Complexity
        What the network weighs.
    certificate : Certificate, optional
        What is proven about the choice; absent once the plan was edited by hand.
    predicted_loss : float, optional
        Loss that the scores predict for the whole plan; absent without scores, and once the plan was
        edited by hand.
    measured : Measured, optional
        Quality of the finished network; absent before measuring.
    guard : Guard, optional
        Comparison with the best uniform option; absent where none fits or none was measured.
    search : Search, optional
        How the budget was found, where a limit on the drop was given and not a budget.
    refinement : Refinement, optional
        What moves by measured loss took and gave; absent without any.
    reconstruction : Reconstruction, optional
        How the integer weights were found; absent before they are.
    profile : str
        Fingerprint of the profile that the scores come from.
    options : tuple of str
        The option set that was chosen from; channel codes are as wide as it needs.
    quantizer : dict
        How steps are searched and points fitted.
    assignment : str
        Digest of all that is chosen, by which an edit is noticed; see `assignment_digest`.
    versions : dict of str to str
        Versions of the tools that made the plan.
    layers : tuple of LayerPlan
        In network order, names unique.
    activations : tuple of ActivationPlan
        Values that are stored in low bits, in the order of the program, names unique; none: all stay float.
    live : tuple of LiveStep
        What is in memory at the operations where it can be most, where there are `activations`.
    """

    version: Literal[6] = 6
    preset: Text | None = None
    unit: Text
    budgets: tuple[Text, ...] = Field(min_length=1)
    constraints: Constraints | None = None
    tables: dict[Text, dict[Text, dict[Text, Cost]]] | None = None
    complexity: Complexity
    certificate: Certificate | None = None
    predicted_loss: float | None = None
    measured: Measured | None = None
    guard: Guard | None = None
    refinement: Refinement | None = None
    search: Search | None = None
    reconstruction: Reconstruction | None = None
    profile: Text
    options: tuple[Text, ...] = Field(min_length=1)
    quantizer: dict[Text, str | float]
    assignment: Text
    versions: dict[Text, Text]
    layers: tuple[LayerPlan, ...] = Field(min_length=1)
    activations: tuple[ActivationPlan, ...] = ()
    live: tuple[LiveStep, ...] = ()

    @model_validator(mode="after")
    def _check_activations(self) -> Self:
        names, layers = [value.name for value in self.activations], {layer.name for layer in self.layers}
        if len(set(names)) < len(names):
            raise ValueError("two activations have the same name; keep one of the two")
        for value in self.activations:
            for layer in value.readers:
                if layer not in layers:
                    raise ValueError(f"value '{value.name}' is read by '{layer}', which is not a layer here")
        for step in self.live:
            for name in step.values:
                if name not in names:
                    raise ValueError(
                        f"'{name}' is alive at '{step.operation}', but not among the activations"
                    )
        return self

    @model_validator(mode="after")
    def _check_layers(self) -> Self:
        unit = parse_unit(self.unit)
        seen: set[str] = set()
        for layer in self.layers:
            if layer.name in seen:
                raise ValueError(f"layer '{layer.name}' occurs twice; keep one of the two")
            seen.add(layer.name)
            layer.check_unit(unit)
        return self

    def main_option(self) -> str:
        """The option that most weights have: of a uniform plan, the one that its constraints leave alone."""
        return _main_weights(self.layers) + self._main_activations()

    def problem(self) -> str:
        """SHA-256 over all that a certificate is about but the choice itself, 16 hexadecimal digits.

        That is the budgets, constraints, tables, the quantizer, predicted losses, and what values take.
        """
        rules = None if self.constraints is None else self.constraints.model_dump(mode="json")
        losses = [self.predicted_loss, *(layer.predicted_loss for layer in self.layers)]
        about: list[object] = [self.budgets, rules, self.tables or None, self.quantizer, losses]
        if self.activations:
            about += [value.about() for value in self.activations]
            about += [step.model_dump(mode="json") for step in self.live]
        text = json.dumps(about, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def aim(self) -> str:
        """What the plan was made for: its budgets, or the drop within which the least size was searched."""
        return f"within a drop of {self.search.limit}" if self.search else f"for {', '.join(self.budgets)}"

    def uniform_name(self) -> str:
        """A uniform plan's option, and that of the first and the last layer where it differs."""
        first, last = self.layers[0].option, self.layers[-1].option
        inner = self.layers[1:-1] or self.layers
        main, activations = _main_weights(inner), self._main_activations()
        exception = first is not None and first == last != main
        return f"{main}{activations}, ends {first}" if exception else f"{main}{activations}"

    def _main_activations(self) -> str:
        bits: dict[str, int] = {}
        for value in self.activations:
            bits[value.option] = bits.get(value.option, 0) + value.elements
        return max(bits, key=lambda option: bits[option]) if bits else ""

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """JSON Schema of the document, as published in `docs/plan.schema.json`."""
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **cls.model_json_schema()}


def assignment_digest(layers: Sequence[LayerPlan], activations: Sequence[ActivationPlan] = ()) -> str:
    """SHA-256 over names, cuts and options of all layers, and names, options and grids of all values.

    16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for layer in layers:
        digest.update(f"{layer.name}:{layer.cut or ''}:{','.join(layer.strip_options())};".encode())
    for value in activations:
        chosen = value.chosen
        digest.update(f"{value.name}:{value.option}:{chosen.step}:{chosen.zero_point};".encode())
    return digest.hexdigest()[:16]


def read_plan(path: Path) -> Plan:
    """Read and validate a plan.

    Raises
    ------
    InputError
        Unreadable, or not a valid plan; names the layer or field.
    """
    return read_document(path, Plan, "plan")


def write_plan(path: Path, plan: Plan) -> None:
    """Write a plan as indented JSON, whole or not at all."""
    write_document(path, plan)


def check_layers(plan: Plan, shapes: Mapping[str, Sequence[int]]) -> None:
    """Refuse a plan that does not fit a network.

    Parameters
    ----------
    plan : Plan
        As read, perhaps edited by hand.
    shapes : mapping of str to sequence of int
        Layer name -> weight shape of the network, output channels first.

    Raises
    ------
    InputError
        A layer is missing from the plan, unknown to the network, or has another shape.
    """
    planned = {layer.name: layer for layer in plan.layers}
    for name, layer in planned.items():
        if name not in shapes:
            raise InputError(
                f"the plan names layer '{name}', which the network does not have; its layers are "
                f"{_listing(list(shapes))}. Remove the layer, or use the plan's own network"
            )
        if tuple(shapes[name]) != layer.shape:
            raise InputError(
                f"the plan gives layer '{name}' the shape {list(layer.shape)}, but the network's weight has "
                f"{list(shapes[name])}; use the network that the plan was made for"
            )
    missing = [name for name in shapes if name not in planned]
    if missing:
        raise InputError(
            f"the plan has no entry for layer {_listing(missing)}; every layer of the network needs one"
        )


def _listing(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"


def _main_weights(layers: Sequence[LayerPlan]) -> str:
    weights: dict[str, float] = {}
    for layer in layers:
        for option, share in layer.option_shares().items():
            weights[option] = weights.get(option, 0.0) + share * prod(layer.shape)
    return max(weights, key=lambda option: weights[option])
