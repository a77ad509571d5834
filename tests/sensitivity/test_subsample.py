"""Samples with unequal probability: fewer backward passes, and right on average."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from apportion.errors import InputError
from apportion.network import Data, Network, capture
from apportion.quantizer import Quantizer, parse_options
from apportion.sensitivity import FisherSettings, Labels, score_fisher
from apportion.sensitivity.subsample import choose_samples

SAMPLES = 400


@pytest.fixture(scope="module")
def sure_network() -> Network:
    """A linear network with 3 classes, sure of most inputs that are far from zero."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        module[2].weight.mul_(12)
    return capture(module, torch.randn(2, 4))


@pytest.fixture(scope="module")
def data() -> Data:
    return Data(torch.randn(SAMPLES, 4, generator=torch.Generator().manual_seed(1)), None, "normal")


def traces(network: Network, data: Data) -> Tensor:
    with torch.no_grad():
        p = network.run(data.inputs).double().softmax(-1)
    return 1 - p.square().sum(-1)


def test_a_share_of_one_takes_every_sample_once(sure_network: Network, data: Data) -> None:
    chosen = choose_samples(sure_network, data, 1.0, 0)
    assert chosen.index.tolist() == list(range(SAMPLES))
    assert chosen.weight.tolist() == [1.0] * SAMPLES


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_about_as_many_are_chosen_as_hold_the_share(sure_network: Network, data: Data, share: float) -> None:
    trace = traces(sure_network, data).sort(descending=True).values
    wanted = int((trace.cumsum(0) < share * trace.sum()).sum()) + 1
    counts = [len(choose_samples(sure_network, data, share, seed).index) for seed in range(50)]
    # The count is a sum of Bernoulli draws, of variance below its mean.
    assert abs(sum(counts) / 50 - wanted) <= 4 * (wanted / 50) ** 0.5 + 1
    assert wanted < SAMPLES


def test_uncertain_samples_have_no_greater_weight_than_certain_ones(
    sure_network: Network, data: Data
) -> None:
    chosen = choose_samples(sure_network, data, 0.9, 0)
    assert bool((chosen.index.diff() > 0).all())
    assert float(chosen.weight.min()) >= 1.0
    by_trace = chosen.weight[traces(sure_network, data)[chosen.index].argsort()]
    assert bool((by_trace.diff() <= 1e-9).all())


def test_weighted_sums_over_the_chosen_are_right_on_average(sure_network: Network, data: Data) -> None:
    trace = traces(sure_network, data)
    # Not the trace itself, whose weighted sum hardly varies.
    value = trace * torch.linspace(0.5, 1.5, SAMPLES, dtype=torch.float64)
    sums = []
    for seed in range(200):
        chosen = choose_samples(sure_network, data, 0.9, seed)
        sums.append((chosen.weight * value[chosen.index]).sum())
    found = torch.stack(sums)
    assert abs(found.mean() - value.sum()) <= 4 * found.std() / 200**0.5


def test_scores_from_chosen_samples_agree_with_scores_from_all(sure_network: Network, data: Data) -> None:
    options = parse_options("w2,w4")
    whole, part = (
        score_fisher(sure_network, data, options, Quantizer(), FisherSettings(labels=Labels.ALL, share=share))
        for share in (1.0, 0.95)
    )
    assert len(part.projections) < 0.8 * len(whole.projections) == 0.8 * SAMPLES
    assert part.samples == whole.samples == SAMPLES
    torch.testing.assert_close(part.layer_loss(), whole.layer_loss(), rtol=0.1, atol=0)
    torch.testing.assert_close(part.layer_error(), whole.layer_error(), rtol=0.2, atol=0)
    torch.testing.assert_close(part.channel_loss.sum(0), whole.channel_loss.sum(0), rtol=0.1, atol=0)


def test_small_data_are_taken_whole(sure_network: Network, data: Data) -> None:
    few = Data(data.inputs[:20], None, data.name)
    assert len(choose_samples(sure_network, few, 0.5, 0).index) == 20


def test_a_network_that_is_sure_of_everything_still_has_samples(sure_network: Network, data: Data) -> None:
    last = sure_network.layers[-1]
    certain = sure_network.replace({last.weight: 1e4 * sure_network.weight(last)})
    chosen = choose_samples(certain, Data(data.inputs + 10, None, data.name), 0.99, 0)
    assert len(chosen.index) > 0
    assert bool(torch.isfinite(chosen.weight).all())


def test_an_output_that_is_not_finite_is_refused(sure_network: Network, data: Data) -> None:
    inputs = data.inputs.clone()
    inputs[7] = torch.inf
    with pytest.raises(InputError, match="NaN or infinite"):
        choose_samples(sure_network, Data(inputs, None, data.name), 0.99, 0)
