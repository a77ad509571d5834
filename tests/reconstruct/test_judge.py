"""Judging: what is kept measured best, the best uniform plan included, and the plan says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch

from apportion.allocator import Plan
from apportion.errors import NotFiniteError
from apportion.network import Data, Network, kl_divergence
from apportion.reconstruct import Finalized, finalize_nearest, judge, measure_competing, measure_finalized

Break = Callable[[Network, Finalized], Finalized]
Assign = Callable[[Mapping[str, Sequence[str]]], Plan]


@pytest.fixture
def finalize(network: Network) -> Callable[[Plan], Finalized]:
    return lambda plan: finalize_nearest(network, plan)


@pytest.fixture(scope="module")
def uniform(plan: Plan, assign: Assign) -> Callable[[str], Plan]:
    """A plan with one option for all layers."""
    return lambda option: assign({layer.name: [option] * layer.shape[0] for layer in plan.layers})


def test_a_plan_that_measures_worse_than_the_uniform_one_is_not_kept(
    network: Network,
    data: Data,
    finalize: Callable[[Plan], Finalized],
    uniform: Callable[[str], Plan],
) -> None:
    bad, good = uniform("w2"), uniform("w4")
    judged = judge(network, [bad], good, data, finalize)
    assert judged.uniform is not None
    assert judged.kept.finalized is judged.uniform.finalized
    kept = judged.kept.plan
    assert kept.layers == good.layers
    assert kept.guard is not None
    assert (kept.guard.kept, kept.guard.option, kept.guard.data) == ("uniform", "w4", data.name)
    assert kept.guard.uniform_loss < kept.guard.plan_loss
    assert kept.measured is not None
    assert kept.measured.loss == kept.guard.uniform_loss


def test_a_plan_that_measures_better_than_the_uniform_one_is_kept(
    network: Network,
    data: Data,
    finalize: Callable[[Plan], Finalized],
    uniform: Callable[[str], Plan],
) -> None:
    judged = judge(network, [uniform("w4")], uniform("w2"), data, finalize)
    kept = judged.kept.plan
    assert kept.layers == uniform("w4").layers
    assert kept.guard is not None
    assert (kept.guard.kept, kept.guard.option) == ("plan", "w2")
    assert kept.measured is not None
    assert kept.measured.loss == kept.guard.plan_loss < kept.guard.uniform_loss


@pytest.mark.parametrize("order", [("w2", "w4", "w3"), ("w4", "w3", "w2"), ("w3", "w2", "w4")])
def test_of_several_plans_the_one_of_least_measured_loss_is_kept(
    network: Network,
    data: Data,
    finalize: Callable[[Plan], Finalized],
    uniform: Callable[[str], Plan],
    order: tuple[str, ...],
) -> None:
    judged = judge(network, [uniform(option) for option in order], None, data, finalize)
    assert {layer.option for layer in judged.kept.plan.layers} == {"w4"}
    assert judged.uniform is None
    assert judged.kept.plan.guard is None
    assert [candidate.plan.layers[0].option for candidate in judged.plans] == list(order)


def test_the_measurement_is_the_kl_to_the_float_network_and_counts_right_answers(
    network: Network, data: Data, plan: Plan
) -> None:
    finalized = finalize_nearest(network, plan)
    found = measure_finalized(network, finalized, data)
    with torch.inference_mode():
        reference = network.run(data.inputs)
        logits = network.replace(finalized.tensors(network)).run(data.inputs)
    loss = kl_divergence(reference, logits)
    assert data.labels is not None
    assert found.loss == pytest.approx(float(loss.mean()), rel=1e-6)
    assert found.standard_error == pytest.approx(float(loss.std()) / len(data) ** 0.5, rel=1e-6)
    assert found.accuracy == float((logits.argmax(-1) == data.labels).double().mean())
    assert found.float_accuracy == float((reference.argmax(-1) == data.labels).double().mean())
    assert (found.samples, found.data) == (64, data.name)


def test_without_labels_there_is_no_accuracy(network: Network, data: Data, plan: Plan) -> None:
    found = measure_finalized(network, finalize_nearest(network, plan), Data(data.inputs, None, "images"))
    assert found.accuracy is None
    assert found.float_accuracy is None


@pytest.mark.parametrize("failing", ["w2", "w4", "w8"])
def test_a_plan_whose_output_is_not_finite_drops_out(
    network: Network, data: Data, uniform: Callable[[str], Plan], broken: Break, failing: str
) -> None:
    def finalize(plan: Plan) -> Finalized:
        found = finalize_nearest(network, plan)
        return broken(network, found) if plan.layers[0].option == failing else found

    judged = judge(network, [uniform("w2"), uniform("w4")], uniform("w8"), data, finalize)
    left = [option for option in ("w2", "w4") if option != failing]
    assert [candidate.plan.layers[0].option for candidate in judged.plans] == left
    assert (judged.uniform is None) == (failing == "w8")
    assert judged.kept.plan.layers[0].option == ("w4" if failing == "w8" else "w8")
    assert (judged.kept.plan.guard is None) == (failing == "w8")


def test_a_uniform_plan_remains_where_no_solved_one_is_finite(
    network: Network, data: Data, uniform: Callable[[str], Plan], broken: Break
) -> None:
    def finalize(plan: Plan) -> Finalized:
        found = finalize_nearest(network, plan)
        return found if plan.layers[0].option == "w8" else broken(network, found)

    judged = judge(network, [uniform("w2")], uniform("w8"), data, finalize)
    assert judged.plans == ()
    assert judged.uniform is not None
    assert judged.kept.finalized is judged.uniform.finalized
    assert judged.kept.plan.guard is None


def test_where_no_output_is_finite_that_is_said(
    network: Network, data: Data, uniform: Callable[[str], Plan], broken: Break
) -> None:
    with pytest.raises(NotFiniteError, match=r"NaN or infinite at these bits on 64 of 64 samples .*budget"):
        judge(
            network,
            [uniform("w2")],
            uniform("w4"),
            data,
            lambda plan: broken(network, finalize_nearest(network, plan)),
        )


def test_what_competed_need_not_be_finite_but_what_is_kept_must(
    network: Network, data: Data, plan: Plan, broken: Break
) -> None:
    good = finalize_nearest(network, plan)
    found = measure_competing(network, good, [broken(network, good)], data)
    assert found == [measure_finalized(network, good, data), None]
    with pytest.raises(NotFiniteError, match="64 of 64"):
        measure_competing(network, broken(network, good), [good], data)
