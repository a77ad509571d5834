"""Values in low bits through every method: layers see there what they see in the whole network."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from apportion.allocator import ActivationChoice, Plan, assignment_digest
from apportion.errors import InputError
from apportion.network import ActivationStore, Data, Network, find_sites, quantize_activation
from apportion.quantizer import Quantizer, StepSearch
from apportion.reconstruct import (
    Correction,
    Lapq,
    LearnedRounding,
    Learning,
    LearningChoices,
    MethodName,
    check_values,
    correct,
    finalize_nearest,
    measure_finalized,
    method_named,
    plan_values,
    value_tensors,
    with_values,
)
from apportion.reconstruct.streams import Streams, walkable_blocks

from .conftest import PlanOf, with_low_bits


@pytest.fixture(scope="module")
def low(kinds: Network, kinds_data: Data, plan_of: PlanOf) -> Plan:
    return with_low_bits(plan_of(kinds, ["w4", "w3"]), kinds, kinds_data)


def test_streams_hold_what_the_whole_network_computes(kinds: Network, kinds_data: Data, low: Plan) -> None:
    whole = finalize_nearest(kinds, low)
    values: list[dict[str, Tensor]] = [{}, {}]
    for kept, tensors in zip(values, (whole.tensors(kinds), {}), strict=True):

        def keep(name: str, value: Tensor, kept: dict[str, Tensor] = kept) -> Tensor:
            kept[name] = value
            return value

        with torch.inference_mode():
            kinds.run(kinds_data.inputs, tensors=tensors, on_value=keep)
    entries = value_tensors(whole.values)
    with ActivationStore(2**20) as store:
        streams = Streams(kinds, kinds_data, store, with_float=True, replaced=dict(entries))
        for block in walkable_blocks(kinds, kinds_data):
            streams.advance(block.entry)
            for layer in block.layers:
                (stored,) = [each for each in whole.layers if each.name == layer.name]
                for node in layer.nodes:
                    step = kinds.schedule.steps[kinds.schedule.position[node]]
                    assert step.source is not None
                    seen = streams.batch(streams.region(step.source), slice(0, 8))
                    for found, kept, changed in zip(seen, values, (True, False), strict=True):
                        expected = kept[step.source][:8]
                        if changed and step.source in whole.values:
                            expected = quantize_activation(expected, whole.values[step.source])
                        assert torch.allclose(found, expected, atol=1e-5)
                streams.replace(layer, stored)


@pytest.mark.parametrize("method", list(MethodName))
def test_every_method_keeps_the_values_and_counts_their_errors(
    kinds: Network, kinds_data: Data, low: Plan, method: MethodName
) -> None:
    made = method_named(method, choices=LearningChoices(iterations=5))
    if method is MethodName.LAPQ:
        made = replace(made, evaluations=20)
    found = made.finalize(kinds, low, kinds_data)
    assert set(found.values) == {value.name for value in low.activations}
    bare = replace(found, values={})
    assert measure_finalized(kinds, found, kinds_data).loss != measure_finalized(kinds, bare, kinds_data).loss


@pytest.mark.parametrize("correction", list(Correction))
def test_corrections_keep_the_values(
    kinds: Network, kinds_data: Data, low: Plan, correction: Correction
) -> None:
    found = correct(kinds, kinds_data, finalize_nearest(kinds, low), correction)
    assert found.values.keys() == plan_values(low).keys()


def test_gptq_makes_up_for_low_bit_inputs(kinds: Network, kinds_data: Data, plan_of: PlanOf) -> None:
    low = with_low_bits(plan_of(kinds, ["w8"]), kinds, kinds_data, bits=(3,))
    losses = [
        measure_finalized(kinds, method_named(name).finalize(kinds, low, kinds_data), kinds_data).loss
        for name in (MethodName.NEAREST, MethodName.GPTQ)
    ]
    assert losses[1] < losses[0]


def test_a_plan_takes_up_what_a_method_finds(kinds: Network, low: Plan) -> None:
    values = plan_values(low)
    moved = {name: entry * torch.tensor([2.0, 1.0, 1.0]) for name, entry in values.items()}
    again = with_values(low, moved)
    for name, entry in plan_values(again).items():
        assert torch.equal(entry, moved[name])
    # Steps that were written by hand are told from these.
    assert again.assignment == assignment_digest(again.layers, again.activations) != low.assignment
    assert with_values(low, values) == low


def test_values_that_are_not_the_networks_are_refused(kinds: Network, low: Plan) -> None:
    check_values(low, kinds)
    first, *rest = low.activations
    for wrong, message in (
        (
            (first.model_copy(update={"name": "nowhere"}), *rest),
            "stores the value 'nowhere' for first, but",
        ),
        ((first.model_copy(update={"readers": {}}), *rest), "for products alone, but layers first read it"),
        (
            (first.model_copy(update={"elements": 1}), *rest),
            r"value 'inputs_0' are counted, .* has 243 elements and the readers {'first': 17496}",
        ),
        ((first.model_copy(update={"readers": {"first": 1}}), *rest), "'inputs_0' are counted, not chosen"),
        (tuple(rest), "the plan has no entry for the value 'inputs_0', which first reads"),
    ):
        with pytest.raises(InputError, match=message):
            check_values(low.model_copy(update={"activations": wrong}), kinds)


def test_a_value_has_no_range_that_the_solver_would_not_give_it(kinds: Network, low: Plan) -> None:
    sites = {site.name: site for site in find_sites(kinds)}
    seen = set()
    for value in low.activations:
        others = [each for each in low.activations if each is not value]
        site = sites[value.name]
        token = ActivationChoice(bits=8, predicted_loss=0.0)
        point = value.chosen.model_copy(update={"zero_point": 2})
        for option, choice, fits, message in (
            ("a8d", token, site.by_token, r"cannot have ranges of every token's own"),
            (value.option, point, not site.nonnegative, r"zero point 2 .* never negative"),
        ):
            edited = value.model_copy(update={"option": option, "choices": {option: choice}})
            plan = low.model_copy(update={"activations": (edited, *others)})
            seen.add((option == "a8d", fits))
            with contextlib.nullcontext() if fits else pytest.raises(InputError, match=message):
                check_values(plan, kinds)
    assert len(seen) == 4


def test_steps_are_learned_with_the_rounding_and_kept_only_where_better(
    kinds: Network, kinds_data: Data, plan_of: PlanOf, tmp_path: Path
) -> None:
    low = with_low_bits(plan_of(kinds, ["w3"]), kinds, kinds_data, bits=(2,))
    before = plan_values(low)
    method = LearnedRounding(learning=Learning(iterations=150, step_rate=3e-3))
    fixed = LearnedRounding(learning=Learning(iterations=150, step_rate=0.0))
    found = method.finalize(kinds, low, kinds_data, store=tmp_path)
    same = fixed.finalize(kinds, low, kinds_data)
    assert all(torch.equal(same.values[name], entry) for name, entry in before.items())
    moved = [name for name in before if not torch.equal(found.values[name], before[name])]
    # What enters the network is not computed by any unit.
    assert moved
    assert "inputs_0" not in moved
    for name in moved:
        assert torch.equal(found.values[name][1:], before[name][1:])
    losses = [measure_finalized(kinds, each, kinds_data).loss for each in (found, same)]
    assert losses[0] < losses[1]
    again = method.finalize(kinds, low, kinds_data, store=tmp_path)
    assert {name: entry.tolist() for name, entry in again.values.items()} == {
        name: entry.tolist() for name, entry in found.values.items()
    }


def test_lapq_searches_steps_of_values_too(kinds: Network, kinds_data: Data, plan_of: PlanOf) -> None:
    low = with_low_bits(plan_of(kinds, ["w8"]), kinds, kinds_data, bits=(3,))
    before = finalize_nearest(kinds, low)
    found = Lapq(evaluations=150).finalize(kinds, low, kinds_data)
    assert any(not torch.equal(found.values[name], entry) for name, entry in before.values.items())
    losses = [measure_finalized(kinds, each, kinds_data).loss for each in (found, before)]
    assert losses[0] < 0.9 * losses[1]


def test_lapq_keeps_given_ranges_beside_the_steps_of_a_norm(
    kinds: Network, kinds_data: Data, plan_of: PlanOf
) -> None:
    """Norms near 1 fit the weights better than min-max, and cut off what values can well keep in 8 bits."""
    low = with_low_bits(plan_of(kinds, ["w3"]), kinds, kinds_data, bits=(8,))
    low = low.model_copy(update={"quantizer": Quantizer(search=StepSearch.MIN_MAX).settings()})
    before = finalize_nearest(kinds, low)
    found = Lapq(exponents=(1.0, 1.2, 1.5), evaluations=0).finalize(kinds, low, kinds_data)
    assert found.values.keys() == before.values.keys()
    assert all(torch.equal(found.values[name], entry) for name, entry in before.values.items())
    losses = [measure_finalized(kinds, each, kinds_data).loss for each in (found, before)]
    assert losses[0] < 0.9 * losses[1]
