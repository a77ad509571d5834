"""LAPQ: the parabola over p, the steps of a norm, and a network that never ends worse than it began."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.allocator import Plan
from apportion.errors import InputError
from apportion.network import Data, Network
from apportion.quantizer import Quantizer, StepSearch, parse_option
from apportion.reconstruct import (
    Finalized,
    Lapq,
    StoredLayer,
    StoredPart,
    finalize_nearest,
    measure_finalized,
)
from apportion.reconstruct.held_out import learned_and_judged
from apportion.reconstruct.lapq import norm_layer, vertex

PlanOf = Callable[..., Plan]
Check = Callable[[Network, Plan, Finalized], None]
QUICK = Lapq(exponents=(2.0, 2.5, 3.0, 4.0), evaluations=30, samples=48)


@settings(derandomize=True, deadline=None)
@given(
    least=st.floats(2.1, 3.9),
    curve=st.floats(0.1, 10),
    height=st.floats(0, 10),
    flip=st.sampled_from([1, -1]),
)
def test_the_vertex_is_that_of_the_parabola_or_none_where_it_opens_downwards(
    least: float, curve: float, height: float, flip: int
) -> None:
    points = [2.0, 2.5, 3.0, 3.5, 4.0]
    found = vertex(points, [height + flip * curve * (p - least) ** 2 for p in points])
    assert found is None if flip < 0 else found == pytest.approx(least, abs=1e-6)


@pytest.mark.parametrize(
    "losses", [[3.0, 2.0, 1.2], [1.0, 1.9, 3.0], [1.0, 1.0, 1.0], [1.0, np.inf, 1.0], [1.0, np.nan, 2.0]]
)
def test_a_minimum_outside_the_grid_or_of_unknown_losses_is_none(losses: list[float]) -> None:
    assert vertex([2.0, 3.0, 4.0], losses) is None


def stored(weight: torch.Tensor, option: str, quantizer: Quantizer) -> StoredLayer:
    rows = quantizer.quantize(weight, parse_option(option))
    return StoredLayer("layer", (StoredPart(torch.arange(len(weight)), rows),))


@pytest.mark.parametrize("option", ["w1", "w2", "w3", "w3t", "w4g8"])
@pytest.mark.parametrize("p", [1.5, 3.0, 4.0])
def test_one_point_takes_the_steps_of_the_quantizers_own_p_norm_search(option: str, p: float) -> None:
    weight = torch.randn(6, 30, generator=torch.Generator().manual_seed(0))
    found = norm_layer(stored(weight, option, Quantizer()), weight, Quantizer(), p).dequantize()
    norm = Quantizer(search=StepSearch.P_NORM, p=p)
    searched = stored(weight, option, norm).dequantize()
    # The ratio of two searches is rounded once more: in 11 bits the last may differ.
    error, best = ((each - weight).abs().pow(p).sum() for each in (found, searched))
    assert float(error) == pytest.approx(float(best), rel=0.02)


def test_a_larger_p_clips_less_with_one_point_and_with_several() -> None:
    weight = torch.randn(6, 200, generator=torch.Generator().manual_seed(0))
    for option in ("w3", "w2x2", "w2x3"):
        start = stored(weight, option, Quantizer())
        worst = [
            float((norm_layer(start, weight, Quantizer(), p).dequantize() - weight).abs().max())
            for p in (1.5, 6.0)
        ]
        assert worst[1] < worst[0]


@pytest.mark.parametrize("option", ["w1x2", "w2", "w3", "w2x2"])
def test_digits_lose_less_than_with_nearest(
    network: Network, plan_of: PlanOf, data: Data, option: str
) -> None:
    chosen = plan_of(network, [option])
    nearest = measure_finalized(network, finalize_nearest(network, chosen), data).loss
    assert measure_finalized(network, QUICK.finalize(network, chosen, data), data).loss < nearest


@pytest.mark.parametrize(
    ("options", "cut"),
    [
        (["w3", "w2x2", "w8", "w4x3"], None),
        (["w2x2t"], None),
        (["w3g4", "w2x2g3"], None),
        (["w2", "w4"], "inputs:3"),
    ],
)
def test_every_kind_of_layer_and_option_stays_storable_and_ends_no_worse_on_what_judges(
    kinds: Network,
    kinds_data: Data,
    plan_of: PlanOf,
    check_storable: Check,
    options: list[str],
    cut: str | None,
) -> None:
    chosen = plan_of(kinds, options, cut)
    finalized = QUICK.finalize(kinds, chosen, kinds_data)
    check_storable(kinds, chosen, finalized)
    assert finalized.biases == {}
    judged = learned_and_judged(len(kinds_data.inputs), QUICK.held_out)[1]
    judge = Data(kinds_data.inputs[judged.start :], None, "judge")
    nearest = measure_finalized(kinds, finalize_nearest(kinds, chosen), judge).loss
    assert measure_finalized(kinds, finalized, judge).loss <= nearest


def test_codes_are_the_nearest_at_the_steps_found(network: Network, plan_of: PlanOf, data: Data) -> None:
    chosen = plan_of(network, ["w3"])
    finalized = QUICK.finalize(network, chosen, data)
    for layer, stored_layer in zip(network.layers, finalized.layers, strict=True):
        (part,) = stored_layer.parts
        weight = network.weight(layer).reshape(layer.channels, -1)
        codes = (weight / part.rows.steps[0]).round().clamp(-4, 3)
        assert torch.equal(codes, part.rows.codes[0].float())


def test_measurements_are_bounded_told_and_repeat(network: Network, plan_of: PlanOf, data: Data) -> None:
    chosen = plan_of(network, ["w3"])
    told: list[tuple[int, int]] = []
    first = QUICK.finalize(network, chosen, data, lambda *step: told.append(step)).tensors(network)
    second = QUICK.finalize(network, chosen, data).tensors(network)
    assert all(torch.equal(first[name], second[name]) for name in first)
    total = len(QUICK.exponents) + 2 + QUICK.evaluations
    assert told[-1] == (total, total)
    # All on the grid, perhaps at the vertex, at the start, and those of Powell's method.
    assert len(told) <= total + 1


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"exponents": (2.0, 3.0)}, r"LAPQ has the exponents \(2\.0, 3\.0\); it takes 3 or more, ascending"),
        ({"exponents": (2.0, 4.0, 3.0)}, r"it takes 3 or more, ascending, from 1 to 20"),
        ({"exponents": (0.5, 2.0, 3.0)}, r"LAPQ has the exponents \(0\.5,"),
        ({"evaluations": -1}, r"LAPQ has evaluations -1; it is between 0 and"),
        ({"reach": 3.0}, r"LAPQ has reach 3; it is between 0 and 2"),
        ({"held_out": 1.0}, r"LAPQ holds out 1\.0 of the calibration data"),
    ],
)
def test_settings_outside_their_range_are_refused(given: dict[str, object], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        Lapq(**given)  # type: ignore[arg-type]
