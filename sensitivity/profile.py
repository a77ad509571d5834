"""The profile document: what every option costs in quality and in bits, and where that was measured."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..allocator import LayerCut
from ..documents import read_document, replace_file, write_document
from ..errors import InputError
from ..quantizer import Option, parse_option
from .activation_profile import ActivationProfile

__all__ = [
    "After",
    "Fingerprint",
    "LayerProfile",
    "OptionScore",
    "Profile",
    "ProfileArrays",
    "Stability",
    "StabilityRound",
    "read_profile",
    "write_profile",
]

Text = Annotated[str, StringConstraints(min_length=1, max_length=500)]
Count = Annotated[int, Field(ge=0)]
After: TypeAlias = Literal["nearest", "gptq", "adaquant", "brecq"]
"""What made the options' weights that were scored."""


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Fingerprint(_Document):
    """What the scores belong to: SHA-256 of weights with the program, calibration data, and all settings."""

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
    cut : str, optional
        ``inputs:64`` where the layer was scored in strips of 64 input weights; without it strips are output
        channels.
    macs : int
        Multiply-accumulates for one sample.
    block : int, optional
        Number of the single-entry single-exit piece of the network that the layer is in.
    reads : tuple of str
        Names of the values that enter the layer, one for each of its uses: layers with the same read the same
        input.
    scores : tuple of OptionScore
        The options that fit the layer.
    """

    name: Text
    kind: Literal["conv", "linear", "embedding"]
    shape: tuple[Annotated[int, Field(gt=0)], ...]
    fan_in: Annotated[int, Field(gt=0)]
    cut: Text | None = None
    macs: Count
    block: Count | None = None
    reads: tuple[Text, ...] = ()
    scores: tuple[OptionScore, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_scores(self) -> Self:
        if prod(self.shape[1:]) != self.fan_in:
            raise ValueError(
                f"layer '{self.name}' has shape {self.shape}, so its fan_in is not {self.fan_in}"
            )
        try:
            self.layer_cut()
        except InputError as error:
            raise ValueError(f"layer '{self.name}': {error}") from error
        options = [score.option for score in self.scores]
        if len(set(options)) < len(options):
            raise ValueError(f"layer '{self.name}' has two scores for one option")
        return self

    @property
    def channels(self) -> int:
        """Output channels."""
        return self.shape[0]

    @property
    def strips(self) -> int:
        """Parts of the weight that have scores of their own."""
        return self.layer_cut().strips

    def layer_cut(self) -> LayerCut:
        """What the strips are."""
        return LayerCut.of(self.shape, self.cut)


class StabilityRound(_Document):
    """What adding samples changed: the plans of before beside those of now, the worst over the budgets.

    Parameters
    ----------
    samples : int
        Number of samples now.
    unchanged : float
        Share of the weights whose option is the same in both plans.
    regret : float
        ``loss(plan of before) / loss(plan of now) - 1`` by the scores of now.
    """

    samples: Count
    unchanged: float = Field(ge=0, le=1)
    regret: float = Field(ge=0)


class Stability(_Document):
    """Whether more samples would still change the plans, see `measure_until_stable`.

    Parameters
    ----------
    unit : str
        What the plans choose options for.
    budgets : tuple of str
        One plan for each.
    rounds : tuple of StabilityRound
    stable : bool
        Whether the last round changed too little to go on; if not, all samples were used.
    """

    unit: Text
    budgets: tuple[Text, ...] = Field(min_length=1)
    rounds: tuple[StabilityRound, ...]
    stable: bool


class Profile(_Document):
    """Scores of every option of every layer.

    Parameters
    ----------
    version : 5
    method : "fisher" or "exact"
    after : "nearest", "gptq", "adaquant" or "brecq"
        What made the options' weights that were scored.
    labels, draws
        How directions were drawn (Fisher only).
    data : str
        Name of the calibration data.
    factor_rows : int
        Rows of the strips' folded projections; 0 where they were not kept.
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
    excluded : tuple of str
        Layers that stay float because they were asked to.
    excluded_macs : dict of str to int
        Multiply-accumulates of each of them for one sample.
    unused : dict of str to int
        Layers of which no sample reached some strips, and how many; their scores are floors, see
        `find_floors`.
    seconds : dict
        Time per stage.
    stability : Stability, optional
        How the number of samples was found, where it was asked for.
    activations : ActivationProfile, optional
        The values that layers read, where these have options too.
    """

    version: Literal[6] = 6
    method: Literal["fisher", "exact"]
    after: After = "nearest"
    labels: Text | None = None
    draws: Count = 0
    data: Text
    samples: Annotated[int, Field(gt=0)]
    scored_samples: Count = 0
    factor_rows: Count = 0
    seed: int
    quantizer: dict[Text, str | float]
    options: tuple[Text, ...] = Field(min_length=1)
    fingerprint: Fingerprint
    weight_count: Annotated[int, Field(gt=0)]
    fixed_bits: Count
    float_bits: Count
    skipped: dict[Text, str] = Field(default_factory=dict)
    excluded: tuple[Text, ...] = ()
    excluded_macs: dict[Text, Count] = Field(default_factory=dict)
    unused: dict[Text, Count] = Field(default_factory=dict)
    seconds: dict[Text, float] = Field(default_factory=dict)
    stability: Stability | None = None
    versions: dict[Text, Text] = Field(default_factory=dict)
    layers: tuple[LayerProfile, ...] = Field(min_length=1)
    activations: ActivationProfile | None = None

    @model_validator(mode="after")
    def _check_layers(self) -> Self:
        names = [layer.name for layer in self.layers]
        if len(set(names)) < len(names):
            raise ValueError("two layers have the same name")
        if set(self.excluded_macs) != set(self.excluded):
            raise ValueError("excluded_macs does not have the layers that excluded names")
        if len(set(self.options)) < len(self.options):
            raise ValueError("the option set names an option twice")
        weights = sum(layer.channels * layer.fan_in for layer in self.layers)
        if weights != self.weight_count:
            raise ValueError(
                f"weight_count is {self.weight_count:,}, but the layers have {weights:,} weights"
            )
        if len({layer.cut for layer in self.layers} - {None}) > 1:
            raise ValueError("layers were cut in several ways; a profile has one cut")
        for layer in self.layers:
            unknown = {score.option for score in layer.scores} - set(self.options)
            if unknown:
                raise ValueError(
                    f"layer '{layer.name}' has scores for {sorted(unknown)}, not in the option set"
                )
        for site in self.activations.sites if self.activations else ():
            if not set(site.readers) <= set(names):
                raise ValueError(
                    f"value '{site.name}' is read by {', '.join(set(site.readers) - set(names))}, which is "
                    "not a layer of the profile"
                )
        return self

    @property
    def cut(self) -> str | None:
        """How the layers that can be cut were cut; None: strips are output channels everywhere."""
        return next((layer.cut for layer in self.layers if layer.cut is not None), None)

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
    channel_loss, channel_error : Tensor, shape (strips of all layers, options), float64
        Loss of quantizing one strip (output channel, unless the layer is cut) alone, and its standard error.
    projections : Tensor, shape (scored samples, draws, layers, options), float32
        See `FisherScores.projections`.
    factors : Tensor, shape (rows, strips of all layers, options), bfloat16, optional
        See `FisherScores.factors`; half as many bytes, and as good for sums over hundreds of rows.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, frozen=True)

    channel_loss: Tensor
    channel_error: Tensor
    projections: Tensor
    factors: Tensor | None = None


def arrays_path(path: Path) -> Path:
    """The arrays beside a profile: ``profile.json`` -> ``profile.safetensors``."""
    return path.with_suffix(".safetensors")


def write_profile(path: Path, profile: Profile, arrays: ProfileArrays | None) -> None:
    """Write the document, and its arrays beside it first, so that a profile never lacks them."""
    if arrays is not None:
        given = {name: getattr(arrays, name) for name in ProfileArrays.model_fields}
        tensors = {name: tensor.contiguous() for name, tensor in given.items() if tensor is not None}
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
    strips = sum(layer.strips for layer in profile.layers)
    options = len(profile.options)
    expected: dict[str, tuple[int, ...]] = {
        "channel_loss": (strips, options),
        "channel_error": (strips, options),
        "projections": (profile.scored_samples, profile.draws, len(profile.layers), options),
    }
    if profile.factor_rows:
        expected["factors"] = (profile.factor_rows, strips, options)
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
