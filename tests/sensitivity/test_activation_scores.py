"""Scores of low-bit values against brute force, and their document."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from apportion.errors import InputError
from apportion.network import Data, Network, capture, quantize_activation
from apportion.quantizer import RangeSearch, RangeSettings, parse_option_set
from apportion.sensitivity import (
    ActivationSettings,
    FisherSettings,
    Labels,
    SiteOptions,
    score_activations,
    score_activations_exact,
    site_options,
)

ALL = FisherSettings(labels=Labels.ALL, share=1.0)


def sites_of(network: Network, data: Data, text: str = "w8a2..8") -> tuple[SiteOptions, ...]:
    """With one range for every option."""
    activations = parse_option_set(text).activations
    return site_options(network, data, ActivationSettings(activations, RangeSettings(RangeSearch.MSE)))


def brute_force(network: Network, data: Data, site: SiteOptions, entry: Tensor) -> Tensor:
    """``1/2 d' F d`` with d the first-order change of the logits when the value changes, for every sample."""
    kept: dict[str, Tensor] = {}

    def keep(name: str, value: Tensor) -> Tensor:
        if name == site.site.name:
            kept[name] = value.detach()
        return value

    p = network.run(data.inputs, on_value=keep).detach().double().softmax(-1)
    value = kept[site.site.name]

    def logits(x: Tensor) -> Tensor:
        return network.run(data.inputs, on_value=lambda name, v: x if name == site.site.name else v)

    change = quantize_activation(value, entry) - value
    d = torch.autograd.functional.jvp(logits, value, change)[1].double()
    form = (p * d.square()).sum(-1) - (p * d).sum(-1).square()
    return form.flatten(1).mean(1) / 2 if form.ndim > 1 else form / 2


def test_all_classes_give_half_the_mean_quadratic_form(image_network: Network, image_data: Data) -> None:
    sites = sites_of(image_network, image_data, "w8a2..4")
    found = score_activations(image_network, image_data, sites, ALL)
    assert found.loss.shape == (5, 3)
    for row, site in enumerate(sites):
        for column, entry in enumerate(site.entries()):
            expected = brute_force(image_network, image_data, site, entry)
            assert float(found.loss[row, column]) == pytest.approx(float(expected.mean()), rel=1e-3)
            error = float(expected.std()) / len(expected) ** 0.5
            assert float(found.error[row, column]) == pytest.approx(error, rel=1e-3)


def test_drawn_directions_agree_in_the_mean(token_network: Network, token_data: Data) -> None:
    sites = sites_of(token_network, token_data, "w8a3,w8a3d")
    times = 300
    many = Data(token_data.inputs.repeat_interleave(times, 0), None, "tokens")
    drawn = score_activations(token_network, many, sites, FisherSettings(share=1.0))
    for row, site in enumerate(sites):
        for column, entry in enumerate(site.entries()):
            expected = float(brute_force(token_network, token_data, site, entry).mean())
            # Six standard errors of what is drawn.
            allowed = 6 * float(drawn.error[row, column])
            assert abs(float(drawn.loss[row, column]) - expected) <= allowed


def test_chunks_change_nothing(image_network: Network, image_data: Data) -> None:
    sites = sites_of(image_network, image_data)
    whole = score_activations(image_network, image_data, sites, FisherSettings())
    cut = score_activations(image_network, image_data, sites, FisherSettings(memory_bytes=2**15))
    assert torch.allclose(whole.loss, cut.loss, rtol=1e-4)


def test_exact_scores_are_measured_and_rank_as_the_others(image_network: Network, image_data: Data) -> None:
    sites = sites_of(image_network, image_data)
    exact = score_activations_exact(image_network, image_data, sites)
    fisher = score_activations(image_network, image_data, sites, ALL)
    assert spearmanr(exact.loss.flatten(), fisher.loss.flatten()).statistic > 0.95


class Overflowing(nn.Module):
    """Its output is small, but what flows back from the last layer is beyond single precision."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.head.weight.data.sign_().mul_(3e38)

    def forward(self, x: Tensor) -> Tensor:
        return 8 * self.head(self.stem(x) * 1e-40)


def test_a_score_that_is_no_number_names_value_and_option() -> None:
    data = Data(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), None, "noise")
    network = capture(Overflowing(), data.inputs)
    with pytest.raises(InputError, match=r"value 'inputs_0': score is (inf|nan) for option a4; check that"):
        score_activations(network, data, sites_of(network, data, "w8a4"), ALL)


def test_ranges_of_tokens_alone_are_refused_where_a_convolution_reads(
    image_network: Network, image_data: Data
) -> None:
    with pytest.raises(InputError, match=r"value 'inputs_0', which layer 'stem' reads, cannot have ranges"):
        sites_of(image_network, image_data, "w8a8d")
    mixed = sites_of(image_network, image_data, "w8a8,w8a8d")
    assert {site.site.by_token: len(site.options) for site in mixed} == {True: 2, False: 1}


def test_settings_of_ranges_reach_the_grids(image_data: Data) -> None:
    network = capture(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(98, 3)), image_data.inputs)
    options = parse_option_set("w8a4").activations
    steps = {}
    for search in RangeSearch:
        settings = ActivationSettings(options, RangeSettings(search, percentile=90))
        (site,) = site_options(network, image_data, settings)
        assert site.grids[0] is not None
        steps[search] = site.grids[0].step
    assert steps[RangeSearch.PERCENTILE] < steps[RangeSearch.MSE] <= steps[RangeSearch.MIN_MAX]


class Attention(nn.Module):
    """One head of attention, its products written as einsum or as matmul."""

    def __init__(self, einsum: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.einsum, self.qkv, self.out = einsum, nn.Linear(6, 18), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).split(6, dim=-1)
        if self.einsum:
            seen = torch.einsum("bij,bjd->bid", torch.einsum("bid,bjd->bij", q, k).softmax(-1), v)
        else:
            seen = (q @ k.transpose(1, 2)).softmax(-1) @ v
        return self.out(seen).mean(1)


def test_attention_scores_the_same_however_its_products_are_written() -> None:
    data = Data(2 * torch.randn(12, 5, 6, generator=torch.Generator().manual_seed(0)), None, "normal")
    settings = ActivationSettings(
        parse_option_set("w8a2..6").activations, RangeSettings(RangeSearch.MSE), attention=True
    )
    fisher, exact = {}, {}
    for einsum in (False, True):
        network = capture(Attention(einsum).eval(), data.inputs)
        sites = site_options(network, data, settings)
        fisher[einsum] = score_activations(network, data, sites, ALL).loss
        exact[einsum] = score_activations_exact(network, data, sites).loss
    # The input, three operands, shares and what the last layer reads.
    assert fisher[True].shape == (6, 5)
    for found in (fisher, exact):
        assert torch.allclose(found[True], found[False], rtol=1e-3)
    assert spearmanr(exact[True].flatten(), fisher[True].flatten()).statistic > 0.95
