"""Whether GPTQ aims at the float network's output: with low-bit activations, what other samples say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from apportion.allocator import Plan
from apportion.network import Data, Network, float_logits, measure_samples
from apportion.reconstruct import (
    AdaQuant,
    Finalized,
    Gptq,
    LearnedRounding,
    Learning,
    StraightThrough,
    gptq,
)

from .conftest import with_low_bits

PLAIN = Gptq(float_target=False)


def same(first: Finalized, second: Finalized) -> bool:
    pairs = zip(first.layers, second.layers, strict=True)
    return all(torch.equal(one.dequantize(), other.dequantize()) for one, other in pairs)


@pytest.fixture
def low(plan: Plan, network: Network, data: Data) -> Plan:
    return with_low_bits(plan, network, data, (2,))


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_the_target_is_given_up_where_samples_not_fitted_to_lose_less_without_it(
    network: Network, plan: Plan, data: Data, bits: int
) -> None:
    low = with_low_bits(plan, network, data, (bits,))
    fitted, others = data.part(slice(48)), data.part(slice(48, None))
    reference = float_logits(network, others)
    aimed, without = (
        measure_samples(
            network, others, settings._walked(network, low, fitted, None, None).tensors(network), reference
        ).loss
        for settings in (Gptq(), PLAIN)
    )
    middle = torch.cat([aimed, without]).double().sort().values[15]
    ratios = (aimed.double() + middle) / (without.double() + middle)
    expected = PLAIN if float(ratios.prod()) > 1 else Gptq()
    assert Gptq().confirmed(network, low, data) == expected
    assert same(Gptq().finalize(network, low, data), expected._walked(network, low, data, None, None))


@pytest.mark.parametrize(
    ("without", "aimed", "gives_up"),
    [
        ((1.0, 1.0, 1.1, 1.0), (2.0, 2.0, 2.0, 2.1), True),
        ((2.0, 2.0, 2.0, 2.1), (1.0, 1.0, 1.1, 1.0), False),
        # One sample may be chance, and what nothing is lost on tells nothing.
        ((2.0, 2.0, 2.0, 2.0), (1.0, 1.0, 1.0, 6.0), False),
        ((1.0, 1.0, 1.0, 6.0), (2.0, 2.0, 2.0, 2.0), True),
        ((2.0, 2.0, 2.0, 1e-12), (1.9, 1.9, 1.9, 1e-6), False),
        ((0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0), False),
        ((9.0, 9.0, 9.0, 9.0), (1.0, 1.0, 1.0, torch.inf), True),
        ((1.0, 1.0, 1.0, torch.inf), (9.0, 9.0, 9.0, 9.0), False),
        ((1.0, 1.0, 1.0, torch.inf), (1.0, 1.0, 1.0, torch.inf), False),
    ],
)
def test_it_is_given_up_by_what_a_typical_sample_says(
    network: Network,
    low: Plan,
    data: Data,
    without: tuple[float, ...],
    aimed: tuple[float, ...],
    gives_up: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = [torch.tensor(losses, dtype=torch.float64) for losses in (without, aimed)]
    measured = "apportion.reconstruct.gptq.measure_samples"
    monkeypatch.setattr(measured, lambda *given: SimpleNamespace(loss=left.pop(0)))
    found = Gptq().confirmed(network, low, data.part(slice(16)))
    assert found == (PLAIN if gives_up else Gptq())


@pytest.mark.parametrize("settings", [PLAIN, Gptq(sequential=False)])
def test_nothing_is_tried_where_there_is_nothing_to_choose(
    network: Network, plan: Plan, low: Plan, data: Data, settings: Gptq, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Gptq, "_walked", lambda *given: pytest.fail("tried"))
    assert settings.confirmed(network, low, data) == settings
    assert Gptq().confirmed(network, plan, data) == Gptq()
    assert Gptq().confirmed(network, low, data.part(slice(12))) == Gptq()


@pytest.mark.parametrize(("chosen", "walks"), [("plan", 1), ("low", 3)])
def test_progress_counts_the_trials(
    network: Network, data: Data, chosen: str, walks: int, request: pytest.FixtureRequest
) -> None:
    told: list[tuple[int, int]] = []
    plan = request.getfixturevalue(chosen)
    Gptq().finalize(network, plan, data, lambda *step: told.append(step))
    count = walks * len(network.layers)
    assert told == [(done, count) for done in range(1, count + 1)]


@pytest.mark.parametrize("aimed", [True, False])
@pytest.mark.parametrize("method", [AdaQuant, LearnedRounding])
def test_progress_of_methods_that_start_from_gptq_counts_its_trials(
    network: Network, low: Plan, data: Data, method: Any, aimed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(gptq, "typical_ratio", lambda *losses: 0.5 if aimed else 2.0)
    learning = StraightThrough(iterations=1) if method is AdaQuant else Learning(iterations=1)
    method(learning=learning).finalize(network, low, data, lambda *step: told.append(step))
    layers = len(network.layers)
    assert told[: 2 * layers] == [(done, 3 * layers) for done in range(1, 2 * layers + 1)]
    shares = [done / total for done, total in told]
    assert all(one < other for one, other in pairwise(shares))
    assert shares[-1] == 1


def test_learned_rounding_starts_from_what_is_confirmed(
    network: Network, low: Plan, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = LearnedRounding(start=Gptq(), learning=Learning(iterations=3))
    expected = replace(method, start=PLAIN).finalize(network, low, data)
    monkeypatch.setattr(Gptq, "confirmed", lambda self, *given: replace(self, float_target=False))
    assert same(method.finalize(network, low, data), expected)


def test_adaquant_aims_as_is_confirmed(
    network: Network, low: Plan, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = AdaQuant(learning=StraightThrough(iterations=3))
    expected = replace(method, start=PLAIN).finalize(network, low, data)
    monkeypatch.setattr(Gptq, "confirmed", lambda self, *given: replace(self, float_target=False))
    assert same(method.finalize(network, low, data), expected)


def test_without_a_float_target_adaquant_makes_up_for_no_error_of_values(
    network: Network, plan_of: Callable[..., Plan], data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    low = with_low_bits(plan_of(network, ["w8"]), network, data, (2,))
    monkeypatch.setattr(Gptq, "confirmed", lambda self, *given: self)

    def moved(start: Gptq) -> float:
        found = AdaQuant(start=start, learning=StraightThrough(iterations=3)).finalize(network, low, data)
        weights = found.tensors(network)
        return sum(
            float((weights[layer.weight] - network.weight(layer)).square().sum()) for layer in network.layers
        )

    assert moved(PLAIN) < 0.01 * moved(Gptq())
