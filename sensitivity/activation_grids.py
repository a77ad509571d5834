"""Which values may be stored in low bits, and with which step and zero point under every option."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from ..errors import InputError
from ..network import (
    Data,
    Network,
    Site,
    dynamic_activation,
    find_sites,
    sample_sites,
    static_activation,
)
from ..quantizer import (
    ActivationGrid,
    ActivationOption,
    RangeSettings,
    candidate_ranges,
    leans_on_few,
)

__all__ = ["ActivationSettings", "SiteOptions", "check_sites", "entry_of", "fitting_options", "site_options"]


@dataclass(frozen=True)
class ActivationSettings:
    """How activations may be stored.

    Parameters
    ----------
    options : tuple of ActivationOption
        In the order of their bits.
    ranges : RangeSettings
        How the range of a value is found.
    attention : bool
        Whether the operands of products of two computed values are stored in low bits too.
    """

    options: tuple[ActivationOption, ...]
    ranges: RangeSettings = field(default_factory=RangeSettings)
    attention: bool = False

    def settings(self) -> dict[str, str | float]:
        """The fields, without the options, as documents keep them."""
        return self.ranges.settings() | {"attention": float(self.attention)}


@dataclass(frozen=True)
class SiteOptions:
    """One value and how it can be stored.

    Attributes
    ----------
    site : Site
    options : tuple of ActivationOption
        Those that fit it, each as often as it has ranges to choose from.
    grids : tuple of ActivationGrid or None
        Step and zero point under each; None where tokens find their own.
    massive : bool
        Whether few numbers are most of the value, so that no derivative tells what it costs to cut them.
    """

    site: Site
    options: tuple[ActivationOption, ...]
    grids: tuple[ActivationGrid | None, ...]
    massive: bool = False

    def only(self, columns: Sequence[int]) -> SiteOptions:
        """The value with some of its options."""
        return replace(
            self,
            options=tuple(self.options[column] for column in columns),
            grids=tuple(self.grids[column] for column in columns),
        )

    def entries(self) -> tuple[Tensor, ...]:
        """What quantizes the value under every option, see `activation_key`."""
        return tuple(entry_of(option, grid) for option, grid in zip(self.options, self.grids, strict=True))


def entry_of(option: ActivationOption, grid: ActivationGrid | None) -> Tensor:
    """What quantizes a value under an option."""
    if grid is None:
        return dynamic_activation(option.levels)
    return static_activation(grid.step, grid.zero_point, grid.levels)


def check_sites(network: Network, settings: ActivationSettings) -> tuple[Site, ...]:
    """The values that may be stored, each of which some option fits.

    Raises
    ------
    InputError
        Ranges of tokens' own alone, for a value that has no tokens on its last axis.
    """
    sites = find_sites(network, attention=settings.attention)
    for site in sites:
        if not fitting_options(site, settings.options):
            who = f"layer '{site.readers[0].layer}' reads" if site.readers else "a product of values reads"
            option = settings.options[0]
            raise InputError(
                f"value '{site.name}', which {who}, cannot have ranges of every token's own, since not all "
                f"its readers are linear layers that read it as it is; add options with one range, such as "
                f"a{option.bits} beside {option}"
            )
    return sites


def site_options(
    network: Network,
    data: Data,
    settings: ActivationSettings,
    *,
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
) -> tuple[SiteOptions, ...]:
    """Every value that may be stored, with its options fitted to calibration data.

    Raises
    ------
    InputError
        No option fits a value, or it holds NaN or infinity on the data.
    """
    sites = check_sites(network, settings)
    samples = sample_sites(network, data, sites, seed=seed, on_batch=on_batch)
    found = []
    for site in sites:
        sample = samples[site.name]
        massive = leans_on_few(sample.numbers, sample.weights)
        options: list[ActivationOption] = []
        grids: list[ActivationGrid | None] = []
        for option in fitting_options(site, settings.options):
            fitted: Sequence[ActivationGrid | None] = (None,)
            if not option.dynamic:
                fitted = candidate_ranges(
                    sample.numbers,
                    option.levels,
                    weights=sample.weights,
                    nonnegative=site.nonnegative,
                    massive=massive,
                    settings=settings.ranges,
                )
            options += [option] * len(fitted)
            grids += fitted
        found.append(SiteOptions(site, tuple(options), tuple(grids), massive))
    return tuple(found)


def fitting_options(site: Site, options: Sequence[ActivationOption]) -> tuple[ActivationOption, ...]:
    """The options that fit a value."""
    return tuple(option for option in options if site.by_token or not option.dynamic)
