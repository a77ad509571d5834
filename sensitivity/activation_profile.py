"""The part of the profile that is about activations: what every option costs every value in quality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from torch import Tensor

from ..allocator import ActivationChoice, ActivationPlan, LiveStep
from ..network import Network, activation_key, live_values
from ..quantizer import ActivationGrid, parse_activation
from .activation_grids import ActivationSettings, SiteOptions, entry_of
from .activation_scores import ActivationScores

__all__ = ["ActivationProfile", "SiteProfile", "SiteScore", "activation_profile"]

Text = Annotated[str, StringConstraints(min_length=1, max_length=500)]
Count = Annotated[int, Field(ge=0)]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SiteScore(_Document):
    """What one option does to one value.

    Parameters
    ----------
    option : str
    loss, standard_error : float
        KL to the float network when only this value is stored so, mean over samples, in nats.
    step, zero_point : optional
        Of the grid ``(code - zero_point) * step``; absent where every token finds its own.
    """

    option: Text
    loss: float
    standard_error: float = Field(ge=0)
    step: float | None = Field(default=None, gt=0)
    zero_point: int | None = Field(default=None, ge=0)


class SiteProfile(_Document):
    """One value and its options.

    Parameters
    ----------
    name : str
        A node of the program, or one of its inputs.
    readers : dict of str to int
        Layers that multiply it, with the multiply-accumulates that this takes for one sample.
    elements : int
        Numbers for one sample.
    nonnegative : bool
        Whether the program never makes it negative, so that its zero point is 0.
    massive : bool
        Whether a few numbers are most of it: its scores are exact, unless the network was streamed.
    scores : tuple of SiteScore
        The options that fit the value.
    """

    name: Text
    readers: dict[Text, Count]
    elements: Count
    nonnegative: bool
    massive: bool
    scores: tuple[SiteScore, ...] = Field(min_length=1)

    def planned(self, option: str) -> ActivationPlan:
        """The value as plans keep it, stored under an option."""
        return ActivationPlan(
            name=self.name,
            option=option,
            elements=self.elements,
            readers=self.readers,
            choices={
                score.option: ActivationChoice(
                    bits=parse_activation(score.option).bits,
                    predicted_loss=score.loss,
                    step=score.step,
                    zero_point=score.zero_point,
                )
                for score in self.scores
            },
        )

    def entry(self, option: str) -> Tensor:
        """What quantizes the value under an option, see `activation_key`."""
        (score,) = [score for score in self.scores if score.option == option]
        parsed = parse_activation(option)
        if score.step is None or score.zero_point is None:
            return entry_of(parsed, None)
        return entry_of(parsed, ActivationGrid(score.step, score.zero_point, parsed.levels))

    def loss(self, option: str) -> float:
        """Score of an option."""
        return next(score.loss for score in self.scores if score.option == option)


class ActivationProfile(_Document):
    """Scores of every option of every value that layers read.

    Parameters
    ----------
    method : "fisher" or "exact"
    options : tuple of str
        The option set, in order of bits.
    settings : dict
        How ranges were found, and whether operands of products were among the values.
    sites : tuple of SiteProfile
        In the order of the program.
    live : tuple of LiveStep
        What is in memory at the operations where it can be most.
    """

    method: Literal["fisher", "exact"]
    options: tuple[Text, ...] = Field(min_length=1)
    settings: dict[Text, str | float]
    sites: tuple[SiteProfile, ...] = Field(min_length=1)
    live: tuple[LiveStep, ...] = ()

    @model_validator(mode="after")
    def _check_sites(self) -> Self:
        names = [site.name for site in self.sites]
        if len(set(names)) < len(names):
            raise ValueError("two values have the same name")
        for site in self.sites:
            given = [score.option for score in site.scores]
            if len(set(given)) < len(given) or not set(given) <= set(self.options):
                raise ValueError(
                    f"value '{site.name}' has scores for {given}; each is to be one of the option set, once"
                )
        unknown = {name for step in self.live for name in step.values} - set(names)
        if unknown:
            raise ValueError(f"{sorted(unknown)} are alive at some operation, and no values of the profile")
        return self

    def entries(self, widths: Sequence[str]) -> dict[str, Tensor]:
        """What quantizes all values, with an option for each, by the names that changed networks have."""
        return {
            activation_key(site.name): site.entry(option)
            for site, option in zip(self.sites, widths, strict=True)
        }

    def planned(self, widths: Sequence[str]) -> tuple[ActivationPlan, ...]:
        """All values as plans keep them, with an option for each."""
        return tuple(site.planned(option) for site, option in zip(self.sites, widths, strict=True))


def activation_profile(
    network: Network,
    sites: Sequence[SiteOptions],
    scores: ActivationScores,
    settings: ActivationSettings,
    method: Literal["fisher", "exact"],
) -> ActivationProfile:
    """The document of scores."""
    live = live_values(network, [site.site for site in sites])
    return ActivationProfile(
        method=method,
        options=tuple(str(option) for option in settings.options),
        settings=settings.settings(),
        sites=tuple(
            SiteProfile(
                name=site.site.name,
                readers={reader.layer: reader.macs for reader in site.site.readers},
                elements=site.site.elements,
                nonnegative=site.site.nonnegative,
                massive=site.massive,
                scores=tuple(
                    SiteScore(
                        option=str(option),
                        loss=float(scores.loss[row, column]),
                        standard_error=float(scores.error[row, column]),
                        step=None if grid is None else grid.step,
                        zero_point=None if grid is None else grid.zero_point,
                    )
                    for column, (option, grid) in enumerate(zip(site.options, site.grids, strict=True))
                ),
            )
            for row, site in enumerate(sites)
        ),
        live=tuple(
            LiveStep(operation=each.operation, floats=each.floats, values=each.sites) for each in live
        ),
    )
