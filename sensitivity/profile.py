"""The profile document: what every option costs in quality and in bits, and where that was measured."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..documents import read_document, replace_file, write_document
from ..errors import InputError
from ..quantizer import Option, parse_option

__all__ = [
    "Fingerprint",
    "LayerProfile",
    "OptionScore",
    "Profile",
    "ProfileArrays",
    "read_profile",
    "write_profile",
]

Text = Annotated[str, StringConstraints(min_length=1, max_length=500)]
Count = Annotated[int, Field(ge=0)]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Fingerprint(_Document):
    """What the scores belong to: SHA-256 of weights, calibration data, and options with all settings."""

    weights: Text
    data: Text
    settings: Text

    def text(self) -> str:
        """One short text that a plan carries."""
        return f"{self.weights[:16]}-{self.data[:16]}-{self.settings[:16]}"


class OptionScore(_Document):
    """What one option does to one layer.

    Parameters
    ----------
    option : str
    size_bits : int
        Codes and steps of the whole layer.
    loss, standard_error : float
        KL to the float network when only this layer is quantized, mean over samples, in nats.
    """

    option: Text
    size_bits: Count
    loss: float
    standard_error: float = Field(ge=0)


class LayerProfile(_Document):
    """One layer and its options.

    Parameters
    ----------
    name, kind
    shape : tuple of int
        Shape of the weight, output channels first.
    fan_in : int
        Weights per output channel.
    macs : int
        Multiply-accumulates for one sample.
    scores : tuple of OptionScore
        The options that fit the layer.
    """

    name: Text
    kind: Literal["conv", "linear"]
    shape: tuple[Annotated[int, Field(gt=0)], ...]
    fan_in: Annotated[int, Field(gt=0)]
    macs: Count
    scores: tuple[OptionScore, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_scores(self) -> Self:
        if prod(self.shape[1:]) != self.fan_in:
            raise ValueError(
                f"layer '{self.name}' has shape {self.shape}, so its fan_in is not {self.fan_in}"
            )
        options = [score.option for score in self.scores]
        if len(set(options)) < len(options):
            raise ValueError(f"layer '{self.name}' has two scores for one option")
        return self

    @property
    def channels(self) -> int:
        """Output channels."""
        return self.shape[0]


class Profile(_Document):
    """Scores of every option of every layer.

    Parameters
    ----------
    version : 1
    method : "fisher" or "exact"
    labels, draws
        How directions were drawn (Fisher only).
    data : str
        Name of the calibration data.
    samples, seed : int
    scored_samples : int
        Samples that got a backward pass (Fisher only), see `choose_samples`.
    quantizer : dict
        How steps were searched and points fitted.
    options : tuple of str
        The option set, in order of stored bits.
    weight_count : int
        Number of weights in all layers.
    fixed_bits : int
        Bits of every other tensor that ships with the network.
    float_bits : int
        Bits of the whole float network.
    skipped : dict
        Weights that stay float, and why.
    seconds : dict
        Time per stage.
    """

    version: Literal[1] = 1
    method: Literal["fisher", "exact"]
    labels: Text | None = None
    draws: Count = 0
    data: Text
    samples: Annotated[int, Field(gt=0)]
    scored_samples: Count = 0
    seed: int
    quantizer: dict[Text, str | float]
    options: tuple[Text, ...] = Field(min_length=1)
    fingerprint: Fingerprint
    weight_count: Annotated[int, Field(gt=0)]
    fixed_bits: Count
    float_bits: Count
    skipped: dict[Text, str] = Field(default_factory=dict)
    seconds: dict[Text, float] = Field(default_factory=dict)
    versions: dict[Text, Text] = Field(default_factory=dict)
    layers: tuple[LayerProfile, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_layers(self) -> Self:
        names = [layer.name for layer in self.layers]
        if len(set(names)) < len(names):
            raise ValueError("two layers have the same name")
        if len(set(self.options)) < len(self.options):
            raise ValueError("the option set names an option twice")
        weights = sum(layer.channels * layer.fan_in for layer in self.layers)
        if weights != self.weight_count:
            raise ValueError(
                f"weight_count is {self.weight_count:,}, but the layers have {weights:,} weights"
            )
        for layer in self.layers:
            unknown = {score.option for score in layer.scores} - set(self.options)
            if unknown:
                raise ValueError(
                    f"layer '{layer.name}' has scores for {sorted(unknown)}, not in the option set"
                )
        return self

    def parsed_options(self) -> tuple[Option, ...]:
        """The option set."""
        return tuple(parse_option(text) for text in self.options)

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """JSON Schema of the document, as published in `docs/profile.schema.json`."""
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **cls.model_json_schema()}


class ProfileArrays(BaseModel):
    """What is too large for JSON; present for Fisher scores.

    Parameters
    ----------
    channel_loss, channel_error : Tensor, shape (channels of all layers, options), float64
        Loss of quantizing one output channel alone, and its standard error.
    projections : Tensor, shape (scored samples, draws, layers, options), float32
        See `FisherScores.projections`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, frozen=True)

    channel_loss: Tensor
    channel_error: Tensor
    projections: Tensor


def arrays_path(path: Path) -> Path:
    """The arrays beside a profile: ``profile.json`` -> ``profile.safetensors``."""
    return path.with_suffix(".safetensors")


def write_profile(path: Path, profile: Profile, arrays: ProfileArrays | None) -> None:
    """Write the document, and its arrays beside it first, so that a profile never lacks them."""
    if arrays is not None:
        tensors = {name: getattr(arrays, name).contiguous() for name in ProfileArrays.model_fields}
        with replace_file(arrays_path(path)) as temporary:
            save_file(tensors, temporary, metadata={"fingerprint": profile.fingerprint.text()})
    write_document(path, profile)


def read_profile(path: Path) -> tuple[Profile, ProfileArrays | None]:
    """Read a profile and, for Fisher scores, its arrays.

    Raises
    ------
    InputError
        Unreadable or invalid, or the arrays are missing, of another shape, or not finite.
    """
    profile = read_document(path, Profile, "profile")
    if profile.method == "exact":
        return profile, None
    beside = arrays_path(path)
    try:
        with safe_open(beside, framework="pt") as file:
            owner = (file.metadata() or {}).get("fingerprint")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"cannot read {beside}, which belongs to profile {path}: {error}; profile again"
        ) from error
    if owner != profile.fingerprint.text():
        raise InputError(
            f"{beside} was written with another profile than {path} (fingerprint {owner}, while the profile "
            f"has {profile.fingerprint.text()}): the two do not belong together; profile again"
        )
    channels = sum(layer.channels for layer in profile.layers)
    options = len(profile.options)
    expected = {
        "channel_loss": (channels, options),
        "channel_error": (channels, options),
        "projections": (profile.scored_samples, profile.draws, len(profile.layers), options),
    }
    for name, shape in expected.items():
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != shape:
            raise InputError(
                f"{beside} holds {name} of shape {found}, but profile {path} needs {shape}: the two do not "
                "belong together; profile again"
            )
        if not bool(torch.isfinite(tensors[name]).all()):
            raise InputError(f"{beside} holds {name} that is NaN or infinite; profile again")
    return profile, ProfileArrays(**{name: tensors[name] for name in expected})
