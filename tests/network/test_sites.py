"""Sites: one for each tensor that layers read, and what is in memory together."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from apportion.errors import InputError
from apportion.network import Data, Network, capture, find_sites, live_values, sample_sites


class Views(nn.Module):
    """Two layers that read one tensor in two shapes, and an addition that reads it as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rows, self.columns = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.last(self.rows(x) + self.columns(x.transpose(1, 2)) + x).mean(1)


class Attention(nn.Module):
    """One head of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).split(4, dim=-1)
        return self.out((q @ k.transpose(1, 2)).softmax(-1) @ v).mean(1)


def test_views_of_one_tensor_are_one_site() -> None:
    network = capture(Views().eval(), torch.randn(2, 4, 4))
    sites = {site.name: site for site in find_sites(network)}
    assert list(sites) == [network.schedule.inputs[0], "relu", "add_1"]
    assert [reader.layer for reader in sites["relu"].readers] == ["rows", "columns"]
    assert [reader.macs for reader in sites["relu"].readers] == [64, 64]
    assert sites["relu"].nonnegative
    assert not sites["add_1"].nonnegative
    # One of its readers has the features on another axis.
    assert (sites["relu"].by_token, sites["add_1"].by_token) == (False, True)


def test_values_are_never_negative_only_where_the_program_makes_sure(
    mixed_network: Network, images: Tensor
) -> None:
    sites = find_sites(mixed_network)
    samples = sample_sites(mixed_network, Data(images, None, "noise"), sites)
    assert {site.name: site.nonnegative for site in sites} == {
        "inputs_0": False, "relu": True, "relu_1": True, "mean": True, "tanh": False, "linear_1": False,
    }  # fmt: skip
    assert all(samples[site.name].numbers.min() >= 0 for site in sites if site.nonnegative)
    assert sum(reader.macs for site in sites for reader in site.readers) == sum(
        layer.macs for layer in mixed_network.layers
    )


def test_operands_of_products_are_sites_where_asked_for() -> None:
    network = capture(Attention().eval(), torch.randn(2, 5, 4))
    plain, wide = find_sites(network), find_sites(network, attention=True)
    assert len(plain) == 2
    added = [site for site in wide if site.name not in {site.name for site in plain}]
    assert [site.readers for site in added] == [()] * 4
    assert [site.nonnegative for site in added] == [False, False, False, True]


class Einsum(nn.Module):
    """The same head, turned by its place, with its products and a stored matrix in einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 4)
        self.mix = nn.Parameter(torch.randn(4, 4))
        self.register_buffer("speed", torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        turns = torch.einsum("i,j->ij", torch.arange(5.0), 2 * self.speed).cos()
        q, k, v = (self.qkv(x) * turns.repeat(1, 3)).split(4, dim=-1)
        seen = torch.einsum("bij,bjd->bid", torch.einsum("bid,bjd->bij", q, k).softmax(-1), v)
        return self.out(torch.einsum("bid,de->bie", seen, 2 * self.mix)).mean(1)


def test_operands_of_einsum_are_sites_where_two_depend_on_the_inputs() -> None:
    network = capture(Einsum().eval(), torch.randn(2, 5, 4))
    plain, wide = find_sites(network), find_sites(network, attention=True)
    added = [site for site in wide if site.name not in {site.name for site in plain}]
    assert [site.elements for site in added] == [20, 20, 20, 25]
    assert [site.nonnegative for site in added] == [False, False, False, True]
    assert any(added[-1].name in each.sites for each in live_values(network, wide))


def test_a_product_with_what_no_input_changes_adds_no_sites() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.head = nn.Parameter(torch.randn(4, 4)), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((x @ (2 * self.weight)).relu())

    network = capture(Scaled().eval(), torch.randn(2, 4))
    assert find_sites(network, attention=True) == find_sites(network)


def test_a_sample_is_of_the_value_and_its_extremes_of_all_numbers(
    mixed_network: Network, images: Tensor
) -> None:
    data, sites = Data(images, None, "noise"), find_sites(mixed_network)
    values: dict[str, Tensor] = {}
    with torch.inference_mode():
        mixed_network.run(images, on_value=lambda name, value: values.setdefault(name, value))
    few, more = (sample_sites(mixed_network, data, sites, count=count, seed=3) for count in (50, 10**6))
    for site in sites:
        value = values[site.name]
        assert torch.equal(few[site.name].numbers.aminmax().min, value.min())
        assert torch.equal(few[site.name].numbers.aminmax().max, value.max())
        assert len(few[site.name].numbers) <= 50 + 2 * math.ceil(50 / 8)
        assert torch.isin(few[site.name].numbers, value).all()
        assert float(few[site.name].weights.sum()) == pytest.approx(value.numel(), rel=1e-5)
        assert torch.equal(more[site.name].numbers, value.flatten())
        assert (more[site.name].weights == 1).all()
    broken = Data(images / 0, None, "broken")
    with pytest.raises(InputError, match="value 'inputs_0' is NaN or infinite"):
        sample_sites(mixed_network, broken, sites)


def test_what_is_alive_together_is_what_a_run_keeps(mixed_network: Network) -> None:
    """Worked out by hand: what convolutions give to relu or an addition is never stored."""
    sites = find_sites(mixed_network)
    sizes = {site.name: site.elements for site in sites}
    live = {each.operation: each for each in live_values(mixed_network, sites)}
    assert sizes["inputs_0"] == 243
    assert sizes["relu"] == 200
    # The stem: input and its result. The depthwise convolution: relu goes on to the addition.
    assert live["relu"].sites == ("inputs_0", "relu")
    # The last relu takes the addition and the convolution before it into itself, and has no site's reader.
    (late,) = [each for each in live.values() if set(each.sites) == {"relu", "relu_1"}]
    assert late.floats == 200
    # Nothing is kept that another operation has more of.
    for one in live.values():
        for other in live.values():
            more = other.floats >= one.floats and set(other.sites) >= set(one.sites)
            assert one is other or not more


def test_a_short_last_batch_gives_no_more_numbers_of_a_sample_than_others() -> None:
    module = nn.Sequential(nn.Linear(4096, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    network = capture(module, torch.randn(2, 4096))
    inputs = torch.zeros(65, 4096)
    inputs[64] = 1.0
    (first,) = [site for site in find_sites(network) if site.name == network.schedule.inputs[0]]
    found = sample_sites(network, Data(inputs, None, "last"), [first])[first.name]
    ones = float(found.weights[found.numbers == 1].sum() / found.weights.sum())
    assert ones == pytest.approx(1 / 65, abs=1e-3)


def test_the_few_largest_numbers_are_in_a_sample_and_stand_for_themselves() -> None:
    """A draw of a thousandth would miss them, or take each for a thousand."""
    network = capture(nn.Linear(1000, 3).eval(), torch.randn(2, 1000))
    inputs = torch.randn(400, 1000, generator=torch.Generator().manual_seed(5))
    massive = torch.tensor([300.0, 250.0, -200.0])
    inputs[[7, 90, 333], [1, 500, 999]] = massive
    (site,) = find_sites(network)
    found = sample_sites(network, Data(inputs, None, "massive"), [site], count=400)[site.name]
    assert len(found.numbers) < 1000
    for number in massive:
        assert (found.weights[found.numbers == number] == 1).all()
        assert number in found.numbers
    square = float((found.numbers.double().square() * found.weights).sum() / found.weights.sum())
    assert square == pytest.approx(float(inputs.square().mean()), rel=0.1)


def test_numbers_that_are_alike_at_the_ends_of_a_sample_count_as_often_as_they_are() -> None:
    """What a clamp makes of images: far more of its extremes than a sample keeps."""
    network = capture(nn.Linear(1000, 3).eval(), torch.randn(2, 1000))
    inputs = torch.randn(200, 1000, generator=torch.Generator().manual_seed(5)).clamp(-1.6, 1.8)
    (site,) = find_sites(network)
    counted = dict.fromkeys((-1.6, 1.8), 0.0)
    for seed in range(20):
        found = sample_sites(network, Data(inputs, None, "clamped"), [site], count=2000, seed=seed)[site.name]
        assert float(found.weights.sum()) == pytest.approx(inputs.numel())
        for end in counted:
            counted[end] += float(found.weights[found.numbers == end].sum()) / 20
    for end, times in counted.items():
        # About a hundred are drawn each time, so that the mean of all has a standard error of 3%.
        assert times == pytest.approx(int((inputs == end).sum()), rel=0.1)
    few = torch.randn(200, 1000, generator=torch.Generator().manual_seed(6))
    few[:, 0], few[:, 1] = 7.0, -6.0
    for seed in range(5):
        found = sample_sites(network, Data(few, None, "few"), [site], count=2000, seed=seed)[site.name]
        for end in (7.0, -6.0):
            assert float(found.weights[found.numbers == end].sum()) == pytest.approx(200)
