"""The damping of GPTQ: as little as samples that were not fitted allow."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from apportion.quantizer import Quantizer, parse_option
from apportion.reconstruct import Gptq, InputGram, StoredLayer, StoredPart, gptq_layer
from apportion.reconstruct.damping import confirmed_damping, unseen_share

FAN_IN = 48


def drawn(count: int, fan_in: int = FAN_IN) -> Tensor:
    """Correlated inputs."""
    generator = torch.Generator().manual_seed(count)
    mixing = torch.randn(fan_in, fan_in, generator=torch.Generator().manual_seed(1))
    return torch.randn(count, fan_in, generator=generator) * torch.logspace(0, -0.5, fan_in) @ mixing


def grams(rows: Tensor) -> InputGram:
    """Sums over rows, with those of the first half."""
    half = rows[: len(rows) // 2].double()
    whole = rows.double()
    return InputGram(2 * (whole.T @ whole)[None], half=InputGram(2 * (half.T @ half)[None]))


def by_diagonal(inputs: InputGram) -> Tensor:
    return inputs.gram.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True)


def chosen(inputs: InputGram, least: float = 0.01) -> float:
    return confirmed_damping(inputs, least, by_diagonal(inputs))


def test_many_samples_are_damped_least() -> None:
    assert chosen(grams(drawn(5000))) == 0.01


def test_fewer_samples_are_damped_more() -> None:
    found = [chosen(grams(drawn(count))) for count in (5000, 96, 24)]
    assert found[0] < found[1] < found[2]


def test_without_a_half_and_of_one_sample_the_damping_stays() -> None:
    whole = grams(drawn(20))
    assert chosen(InputGram(whole.gram), 0.03) == 0.03
    alone = grams(drawn(1))
    assert confirmed_damping(alone, 0.03, by_diagonal(alone)) >= 0.03


@pytest.mark.parametrize("fan_in", [FAN_IN, 200])
def test_the_damping_is_the_best_of_gptq_on_other_samples(fan_in: int) -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(64, fan_in, generator=generator)
    rows = Quantizer().quantize(weight, parse_option("w4"))
    nearest = StoredLayer("layer", (StoredPart(torch.arange(64), rows),))
    seen, fresh = grams(drawn(fan_in // 2, fan_in)), drawn(2000, fan_in)

    def error(layer: StoredLayer) -> float:
        return float((fresh @ (layer.dequantize() - weight).T).square().mean())

    def at(damping: float) -> float:
        return error(gptq_layer(weight, InputGram(seen.gram), nearest, Gptq(damping=damping)))

    made = error(gptq_layer(weight, seen, nearest, Gptq()))
    assert made < error(nearest)
    assert made < 0.65 * at(0.01)
    assert made < 1.01 * min(at(damping) for damping in (0.01, 0.1, 1.0, 10.0))


@pytest.mark.parametrize("count", [24, 48, 96, 400, 4000])
def test_the_share_of_unseen_error_is_about_what_gptq_leaves_on_other_samples(count: int) -> None:
    weight = torch.randn(256, FAN_IN, generator=torch.Generator().manual_seed(2))
    rows = Quantizer().quantize(weight, parse_option("w4"))
    nearest = StoredLayer("layer", (StoredPart(torch.arange(256), rows),))
    own, fresh = drawn(count), drawn(20_000)
    inputs = grams(own)
    made = gptq_layer(weight, inputs, nearest, Gptq(refits=0)).dequantize() - weight
    on_own, on_others = ((made @ each.T).square().mean() for each in (own, fresh))
    share = unseen_share(inputs, 0.01, by_diagonal(inputs))
    assert 0.95 < share / float(on_others / on_own) < 1.15


def test_without_a_half_errors_are_taken_as_seen() -> None:
    whole = grams(drawn(20))
    assert unseen_share(InputGram(whole.gram), 0.03, by_diagonal(whole)) == 1.0
