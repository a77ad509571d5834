"""The plan document: how every layer is stored, what that costs, and what is proven and measured about it.

Plans are made to be read, compared and edited by hand: to change a layer, change its `option`, or move
channels between the ranges in its `channels`. Sizes and predictions in an edited plan are recomputed by who
uses it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from ..documents import read_document, write_document
from ..errors import InputError
from .layer_plan import Bits, Document, LayerPlan, Size, Text
from .solution import Certificate

__all__ = [
    "Complexity",
    "Guard",
    "Measured",
    "Plan",
    "assignment_digest",
    "check_layers",
    "read_plan",
    "write_plan",
]


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
    """

    size_bits: Bits
    average_bits: float = Field(ge=0)
    fixed_bits: Bits
    float_bits: Bits
    weight_count: Size


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
    """

    loss: float
    standard_error: float = Field(ge=0)
    samples: Size
    data: Text
    accuracy: float | None = Field(default=None, ge=0, le=1)
    float_accuracy: float | None = Field(default=None, ge=0, le=1)


class Guard(Document):
    """The comparison with the best uniform option that fits the budget, both measured.

    Parameters
    ----------
    option : str
        The uniform option.
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


class Plan(Document):
    """A chosen storage for every layer, with its proof and, once measured, its quality.

    Parameters
    ----------
    version : 1
        Version of this document's form.
    unit : "layer" or "channel"
        Whether options were chosen per layer or per output channel.
    budget : str
        The budget as given, such as ``4b`` or ``1.2MB``.
    complexity : Complexity
        What the network weighs.
    certificate : Certificate, optional
        What is proven about the choice; absent once the plan was edited by hand.
    predicted_loss : float
        Loss that the scores predict for the whole plan.
    measured : Measured, optional
        Quality of the finished network; absent before measuring.
    guard : Guard, optional
        Comparison with the best uniform option; absent where none fits or none was measured.
    profile : str
        Fingerprint of the profile that the scores come from.
    options : tuple of str
        The option set that was chosen from; channel codes are as wide as it needs.
    quantizer : dict
        How steps are searched and points fitted.
    assignment : str
        Digest of the chosen options, by which an edit is noticed; see `assignment_digest`.
    versions : dict of str to str
        Versions of the tools that made the plan.
    layers : tuple of LayerPlan
        In network order, names unique.
    """

    version: Literal[1] = 1
    unit: Literal["layer", "channel"]
    budget: Text
    complexity: Complexity
    certificate: Certificate | None = None
    predicted_loss: float
    measured: Measured | None = None
    guard: Guard | None = None
    profile: Text
    options: tuple[Text, ...] = Field(min_length=1)
    quantizer: dict[Text, str | float]
    assignment: Text
    versions: dict[Text, Text]
    layers: tuple[LayerPlan, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_layers(self) -> Self:
        seen: set[str] = set()
        for layer in self.layers:
            if layer.name in seen:
                raise ValueError(f"layer '{layer.name}' occurs twice; keep one of the two")
            seen.add(layer.name)
            if self.unit == "layer" and layer.channels is not None:
                raise ValueError(
                    f"layer '{layer.name}' has channels in a plan per layer; set unit to channel"
                )
        return self

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """JSON Schema of the document, as published in `docs/plan.schema.json`."""
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **cls.model_json_schema()}


def assignment_digest(layers: Sequence[LayerPlan]) -> str:
    """SHA-256 over names and options of all layers, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for layer in layers:
        digest.update(f"{layer.name}:{','.join(layer.channel_options())};".encode())
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
