"""The document of a measured frontier: what plans along it promise and what they keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from ..documents import read_document, write_document
from .layer_plan import Bits, Document, Size, Text
from .pareto import ParetoCurve
from .plan import Measured

__all__ = [
    "FrontierCurve",
    "FrontierPoint",
    "MeasuredFrontier",
    "read_frontier",
    "write_frontier",
]


class FrontierPoint(Document):
    """One storage of the network, predicted and measured.

    Parameters
    ----------
    name : str
        The budget, such as ``3.5b``, or the option of a uniform plan.
    unit : str
        What options were chosen for; ``layer`` for a uniform plan.
    weight_bits : int
        Bits of the quantized weights with their overheads.
    average_bits : float
        The same per quantized weight.
    predicted_loss : float
        KL that the scores of layers and activations, added up as in the curve, predict, nats.
    measured : Measured
        Quality as measured; all points of a frontier on the same data.
    """

    name: Text
    unit: Text
    weight_bits: Bits
    average_bits: float = Field(ge=0)
    predicted_loss: float
    measured: Measured


class FrontierCurve(Document):
    """Predicted loss over size, as `ParetoCurve` has it.

    Parameters
    ----------
    weight_bits, loss : tuple
        Best choices for their size, rising and falling.
    bound_bits, bound_loss : tuple
        The bound of the linear relaxation.
    """

    weight_bits: tuple[Bits, ...] = Field(min_length=1)
    loss: tuple[float, ...]
    bound_bits: tuple[Bits, ...] = Field(min_length=1)
    bound_loss: tuple[float, ...]

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if (len(self.loss), len(self.bound_loss)) != (len(self.weight_bits), len(self.bound_bits)):
            raise ValueError("a curve needs a loss for every number of bits")
        return self

    @classmethod
    def of(cls, curve: ParetoCurve) -> FrontierCurve:
        """A curve as documents keep it."""
        return cls(
            weight_bits=tuple(curve.cost.tolist()),
            loss=tuple(curve.loss.tolist()),
            bound_bits=tuple(curve.bound_cost.tolist()),
            bound_loss=tuple(curve.bound_loss.tolist()),
        )


class MeasuredFrontier(Document):
    """Plans at several budgets and all uniform options, each predicted and measured.

    Parameters
    ----------
    version : 1
        Version of this document's form.
    profile : str
        Fingerprint of the profile that the scores come from.
    options : tuple of str
        The option set that was chosen from.
    fixed_bits : int
        Bits of what is not quantized.
    float_bits : int
        Bits of the whole float network.
    weight_count : int
        Number of quantized weights.
    curve : FrontierCurve
        What the scores predict for all budgets.
    plans : tuple of FrontierPoint
        Plans, rising in size.
    uniform : tuple of FrontierPoint
        The same option for every layer, where it fits all of them.
    versions : dict of str to str
        Versions of the tools.
    """

    version: Literal[1] = 1
    profile: Text
    options: tuple[Text, ...] = Field(min_length=1)
    fixed_bits: Bits
    float_bits: Bits
    weight_count: Size
    curve: FrontierCurve
    plans: tuple[FrontierPoint, ...] = Field(min_length=1)
    uniform: tuple[FrontierPoint, ...] = ()
    versions: dict[Text, Text] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_points(self) -> Self:
        sizes = [point.weight_bits for point in self.plans]
        if sizes != sorted(sizes):
            raise ValueError("the plans do not rise in size; sort them by weight_bits")
        measured_on = {
            (point.measured.data, point.measured.samples) for point in (*self.plans, *self.uniform)
        }
        if len(measured_on) > 1:
            raise ValueError("the points were measured on different data and cannot be compared")
        return self

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """JSON Schema of the document, as published in `docs/frontier.schema.json`."""
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **cls.model_json_schema()}


def read_frontier(path: Path) -> MeasuredFrontier:
    """Read and validate a measured frontier.

    Raises
    ------
    InputError
        Unreadable, or not a valid frontier; names the field.
    """
    return read_document(path, MeasuredFrontier, "frontier")


def write_frontier(path: Path, frontier: MeasuredFrontier) -> None:
    """Write a frontier as indented JSON, whole or not at all."""
    write_document(path, frontier)
