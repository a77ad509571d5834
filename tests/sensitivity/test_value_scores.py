"""Which range an option of a value gets: by scores, and by replays where a value leans on few numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from apportion.network import Data, Network, capture
from apportion.quantizer import (
    ActivationGrid,
    ActivationOption,
    RangeSearch,
    RangeSettings,
    parse_options,
)
from apportion.sensitivity import (
    ActivationSettings,
    FisherSettings,
    SiteOptions,
    measure_profile,
    score_activations,
    score_activations_exact,
    score_values,
    site_options,
)
from apportion.sensitivity.value_scores import better_columns

HIDDEN, TOKENS = 640, 16
EIGHT = ActivationSettings((ActivationOption(8),))


class Leaning(nn.Module):
    """One number in ten thousand, behind a GELU, is a hundred times as large as all others."""

    def __init__(self, massive: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.norm = nn.Linear(8, HIDDEN), nn.Linear(HIDDEN, 8), nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)
        self.head.weight.data.mul_(4)
        self.up.weight.data[0] = 0
        self.up.weight.data[0, 0] = massive
        self.up.bias.data[0] = -1.0
        self.down.weight.data[:, 1:] *= 3
        self.down.weight.data[:, 0] *= 2

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x + self.down(nn.functional.gelu(self.up(x))))).mean(1)


def tokens_of(samples: int) -> Data:
    """The first token alone has the first feature."""
    inputs = torch.randn(samples, TOKENS, 8, generator=torch.Generator().manual_seed(1))
    inputs[:, :, 0] = 0
    inputs[:, 0, 0] = 1 + torch.rand(samples, generator=torch.Generator().manual_seed(2))
    return Data(inputs, None, "tokens")


@pytest.fixture(scope="module")
def leaning() -> tuple[Network, Data]:
    data = tokens_of(64)
    return capture(Leaning(100.0).eval(), data.inputs[:2]), data


def behind_gelu(sites: tuple[SiteOptions, ...]) -> int:
    return [site.site.readers[0].layer for site in sites].index("down")


def test_a_value_that_leans_on_few_numbers_is_replayed(leaning: tuple[Network, Data]) -> None:
    network, data = leaning
    sites = site_options(network, data, EIGHT)
    row = behind_gelu(sites)
    assert [site.massive for site in sites] == [index == row for index in range(len(sites))]
    settled, scores = score_values(network, data, sites, "fisher", FisherSettings())
    assert all(len(site.options) == 1 for site in settled)
    exact = score_activations_exact(network, data, [settled[row]])
    torch.testing.assert_close(scores.loss[row], exact.loss[0])
    torch.testing.assert_close(scores.error[row], exact.error[0])
    # Every range between that of the many and that of the few, more finely than the search tries them.
    assert settled[row].grids[0] in sites[row].grids
    ends = [2 * 1.1**power for power in range(60) if 2 * 1.1**power < 220]
    scan = replace(
        settled[row],
        options=(ActivationOption(8),) * len(ends),
        grids=tuple(ActivationGrid.over(-0.17, end, 255) for end in ends),
    )
    losses = score_activations_exact(network, data, [scan]).loss[0]
    assert float(scores.loss[row, 0]) <= 1.5 * float(losses.min())
    # The derivative says to cut at the others' end.
    fisher = score_activations(network, data, [sites[row]], FisherSettings()).loss[0]
    misled = sites[row].only([int(fisher.argmin())])
    assert float(score_activations_exact(network, data, [misled]).loss) > 3 * float(scores.loss[row, 0])


def test_nothing_leans_where_no_number_is_massive() -> None:
    data = tokens_of(8)
    network = capture(Leaning(1.0).eval(), data.inputs[:2])
    assert not any(site.massive for site in site_options(network, data, EIGHT))


@pytest.mark.parametrize("method", ["fisher", "exact"])
def test_a_range_gives_way_only_to_one_of_less_loss(
    image_network: Network, image_data: Data, method: Literal["fisher", "exact"]
) -> None:
    settings = ActivationSettings((ActivationOption(3), ActivationOption(6)))
    one, several = (
        score_values(
            image_network,
            image_data,
            site_options(image_network, image_data, replace(settings, ranges=RangeSettings(search))),
            method,
            FisherSettings(share=1.0),
        )
        for search in (RangeSearch.MSE, RangeSearch.LOSS)
    )
    (kept, kept_scores), (chosen, chosen_scores) = one, several
    moved = torch.tensor(
        [[a != b for a, b in zip(x.grids, y.grids, strict=True)] for x, y in zip(kept, chosen, strict=True)]
    )
    assert all(site.options == settings.options for site in (*kept, *chosen))
    assert moved.any()
    assert bool((chosen_scores.loss[moved] < kept_scores.loss[moved]).all())
    torch.testing.assert_close(chosen_scores.loss[~moved], kept_scores.loss[~moved])


def test_the_profile_has_every_option_once(leaning: tuple[Network, Data]) -> None:
    network, data = leaning
    activations = ActivationSettings(
        (ActivationOption(4), ActivationOption(8), ActivationOption(8, dynamic=True))
    )
    profile, _ = measure_profile(network, data, parse_options("w8"), activations=activations)
    assert profile.activations is not None
    for found in profile.activations.sites:
        assert [score.option for score in found.scores] == ["a4", "a8", "a8d"]
    sites = site_options(network, data, activations)
    row = behind_gelu(sites)
    entries = profile.activations.sites[row]
    grids = tuple(
        None if score.step is None or score.zero_point is None
        else ActivationGrid(score.step, score.zero_point, option.levels)
        for score, option in zip(entries.scores, activations.options, strict=True)
    )  # fmt: skip
    exact = score_activations_exact(
        network, data, [replace(sites[row], options=activations.options, grids=grids)]
    )
    assert [score.loss for score in entries.scores] == pytest.approx(exact.loss[0].tolist())


@pytest.mark.parametrize("search", RangeSearch)
def test_where_weights_are_streamed_no_replay_decides(
    leaning: tuple[Network, Data], monkeypatch: pytest.MonkeyPatch, search: RangeSearch
) -> None:
    network, data = leaning
    activations = replace(EIGHT, ranges=RangeSettings(search, percentile=99))
    sites = site_options(network, data, activations)
    row = behind_gelu(sites)
    monkeypatch.setattr(Network, "is_streamed", True)
    settled, scores = score_values(network, data, sites, "fisher", FisherSettings())
    assert settled[row].grids == sites[row].grids[:1]
    fisher = score_activations(network, data, [settled[row]], FisherSettings()).loss[0]
    torch.testing.assert_close(scores.loss[row], fisher)


@pytest.mark.parametrize(
    ("gains", "chosen"),
    [((0.0, 0.0), 0), ((0.1, 0.0), 0), ((2.0, 0.0), 1), ((2.0, 3.0), 2), ((3.0, 2.0), 1), ((0.1, 2.0), 2)],
)
def test_only_more_than_chance_moves_a_range_and_then_the_best(
    leaning: tuple[Network, Data], gains: tuple[float, float], chosen: int
) -> None:
    """Gains in a noise of one, of which 64 samples have a standard error of an eighth."""
    network, data = leaning
    site = site_options(network, data, EIGHT)[0]
    three = replace(site, options=site.options[:1] * 3, grids=site.grids[:1] * 3)
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    noise -= noise.mean(0)
    losses = torch.cat([torch.full((64, 1), 10.0), 10 - torch.tensor(gains) + noise], dim=1)
    assert better_columns(three, losses) == [chosen]
