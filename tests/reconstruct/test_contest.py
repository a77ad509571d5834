"""Which plan by which method: the cheap ones first, the dear ones only where they pay."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest
import torch

from apportion.allocator import Plan
from apportion.errors import NotFiniteError
from apportion.network import Data, Network
from apportion.reconstruct import (
    Compared,
    Finalized,
    Judged,
    LearnedRounding,
    LearningChoices,
    Method,
    MethodName,
    contest,
    finalize_nearest,
    method_named,
)

Assign = Callable[[Mapping[str, Sequence[str]]], Plan]
Uniform = Callable[[str], Plan]


@pytest.fixture(scope="module")
def uniform(plan: Plan, assign: Assign) -> Uniform:
    """A plan with one option for all layers."""
    return lambda option: assign({layer.name: [option] * layer.shape[0] for layer in plan.layers})


class Contest:
    """A contest of plans, and what was finalized and said in it."""

    def __init__(self, network: Network, data: Data, iterations: int = 100) -> None:
        self.network, self.data, self.iterations = network, data, iterations
        self.failing: tuple[str, ...] = ()
        self.carried: list[tuple[str, str]] = []
        self.told: list[Compared] = []

    def __call__(self, plans: Sequence[Plan], rival: Plan | None, method: MethodName | None) -> Judged:
        def carry_out(chosen: Method, plan: Plan) -> Finalized:
            self.carried.append((type(chosen).__name__, plan.main_option()))
            if type(chosen).__name__ in self.failing:
                raise NotFiniteError(f"{type(chosen).__name__} fails")
            return chosen.finalize(self.network, plan, self.data)

        def named(name: MethodName) -> Method:
            return method_named(name, choices=LearningChoices(iterations=self.iterations))

        return contest(self.network, plans, rival, self.data, method, named, carry_out, self.told.append)


@pytest.mark.parametrize("method", list(MethodName))
def test_the_plan_says_how_its_weights_were_found(
    network: Network, data: Data, uniform: Uniform, method: MethodName
) -> None:
    judged = Contest(network, data, 5)([uniform("w4")], uniform("w3"), method)
    how = judged.kept.plan.reconstruction
    assert how is not None
    assert (how.method, how.compared, how.data) == (str(method), {}, data.name)
    assert judged.kept.plan.guard is not None


def test_plans_far_behind_after_gptq_are_not_learned_for(
    network: Network, data: Data, uniform: Uniform
) -> None:
    ran = Contest(network, data, 5)
    judged = ran([uniform("w2"), uniform("w4")], uniform("w3"), MethodName.BRECQ)
    assert [option for name, option in ran.carried if name == "Gptq"] == ["w2", "w4", "w3"]
    assert [option for name, option in ran.carried if name == "LearnedRounding"] == ["w4"]
    # The uniform plan is shown and compared all the same.
    assert judged.uniform is not None
    guard = judged.kept.plan.guard
    assert guard is not None
    assert (guard.option, guard.kept) == ("w3", "plan")
    assert guard.uniform_loss == judged.uniform.quality.loss > guard.plan_loss


def test_a_uniform_plan_that_alone_is_good_wins(network: Network, data: Data, uniform: Uniform) -> None:
    judged = Contest(network, data, 5)([uniform("w2")], uniform("w8"), MethodName.BRECQ)
    guard = judged.kept.plan.guard
    assert guard is not None
    assert (guard.option, guard.kept) == ("w8", "uniform")
    assert judged.kept.plan.reconstruction is not None


def test_eight_bits_need_no_more_than_rounding_to_nearest(
    network: Network, data: Data, uniform: Uniform
) -> None:
    ran = Contest(network, data)
    judged = ran([uniform("w8")], None, None)
    assert {name for name, _ in ran.carried} == {"Nearest"}
    how = judged.kept.plan.reconstruction
    assert how is not None
    assert how.method == "nearest"
    assert how.compared == {"nearest": judged.kept.quality.loss}


@pytest.mark.parametrize("option", ["w2", "w3", "w4"])
def test_the_cheapest_method_within_the_margin_is_taken(
    network: Network, data: Data, uniform: Uniform, option: str
) -> None:
    ran = Contest(network, data)
    judged = ran([uniform(option)], None, None)
    how = judged.kept.plan.reconstruction
    assert how is not None
    assert how.compared == {compared.name: compared.loss for compared in ran.told}
    assert list(how.compared) == ["nearest", "gptq", "brecq"][: len(how.compared)]
    first = {compared.name: compared.loss for compared in reversed(ran.told)}
    limit = max(1.5 * min(first.values()), min(first.values()) + 0.002)
    (taken, *_) = (name for name in how.compared if first[name] <= limit)
    if taken == "brecq":
        # Carried out, and so measured too.
        assert [told.expected for told in ran.told if told.name == "brecq"] == [True, False]
        assert how.compared[how.method] == min(how.compared.values())
    else:
        assert how.method == taken
        assert [told.expected for told in ran.told] == [told.name == "brecq" for told in ran.told]
    assert how.compared[how.method] == judged.kept.quality.loss


def test_at_two_bits_learning_pays(network: Network, data: Data, uniform: Uniform) -> None:
    ran = Contest(network, data, 1000)
    judged = ran([uniform("w2")], None, None)
    how = judged.kept.plan.reconstruction
    assert how is not None
    assert how.method == "brecq"
    assert judged.kept.quality.loss < how.compared["gptq"] / 1.5


@pytest.mark.parametrize(
    ("failing", "taken", "compared"),
    [
        (["Nearest"], "brecq", ["gptq", "brecq"]),
        (["Gptq"], "nearest", ["nearest"]),
        (["LearnedRounding"], "gptq", ["nearest", "gptq"]),
        (["Nearest", "LearnedRounding"], "gptq", ["gptq"]),
    ],
)
def test_a_method_by_which_no_output_is_finite_drops_out(
    network: Network, data: Data, uniform: Uniform, failing: list[str], taken: str, compared: list[str]
) -> None:
    ran = Contest(network, data, 1000)
    ran.failing = tuple(failing)
    how = ran([uniform("w2")], None, None).kept.plan.reconstruction
    assert how is not None
    assert (how.method, list(how.compared)) == (taken, compared)


def test_a_method_that_is_named_needs_no_finite_gptq(network: Network, data: Data, uniform: Uniform) -> None:
    ran = Contest(network, data, 5)
    ran.failing = ("Gptq",)
    judged = ran([uniform("w2"), uniform("w4")], None, MethodName.BRECQ)
    assert judged.kept.plan.main_option() == "w4"
    assert len(judged.plans) == 2


def test_where_all_methods_fail_the_first_failure_is_raised(
    network: Network, data: Data, uniform: Uniform
) -> None:
    ran = Contest(network, data, 5)
    ran.failing = ("Nearest", "Gptq", "LearnedRounding")
    with pytest.raises(NotFiniteError, match="Nearest fails"):
        ran([uniform("w2")], None, None)


class Sized:
    """A contest of a plan and a uniform one in which every method leaves errors of a given size.

    `sizes` of the plan by the method, ``Quick`` for a look at learned rounding; of the uniform one where they
    differ.
    """

    def __init__(self, network: Network, data: Data, sizes: Mapping[str, float], rival: Mapping[str, float]):
        self.network, self.data, self.sizes, self.rival = network, data, sizes, {**sizes, **rival}
        self.carried: list[tuple[str, bool]] = []

    def __call__(self, plan: Plan, uniform: Plan | None, method: MethodName | None) -> Judged:
        def carry_out(chosen: Method, carried: Plan) -> Finalized:
            name = type(chosen).__name__
            if isinstance(chosen, LearnedRounding) and chosen.learning.iterations < 100:
                name = "Quick"
            self.carried.append((name, carried is uniform))
            return self.off_by((self.rival if carried is uniform else self.sizes)[name], carried)

        def named(name: MethodName) -> Method:
            return method_named(name, choices=LearningChoices(iterations=100))

        return contest(self.network, [plan], uniform, self.data, method, named, carry_out)

    def off_by(self, size: float, plan: Plan) -> Finalized:
        generator = torch.Generator().manual_seed(0)
        biases = {}
        for layer in self.network.layers:
            if layer.bias is not None:
                bias = self.network.tensors[layer.bias]
                biases[layer.bias] = bias + size * torch.randn(bias.shape, generator=generator)
        return replace(finalize_nearest(self.network, plan), biases=biases)


def test_learning_that_comes_out_worse_than_it_was_expected_to_is_not_kept(
    network: Network, data: Data, uniform: Uniform
) -> None:
    sizes = {"Nearest": 0.8, "Gptq": 0.2, "Quick": 0.1, "LearnedRounding": 0.4}
    ran = Sized(network, data, sizes, {"Gptq": 0.22})
    judged = ran(uniform("w8"), uniform("w8"), None)
    how = judged.kept.plan.reconstruction
    assert how is not None
    assert how.method == "gptq"
    assert how.compared["gptq"] == judged.kept.quality.loss == min(how.compared.values())
    assert how.compared["brecq"] > how.compared["gptq"]
    assert ("LearnedRounding", False) in ran.carried


def test_rounding_to_nearest_near_gptq_is_compared_with_learning_all_the_same(
    network: Network, data: Data, uniform: Uniform
) -> None:
    sizes = {"Nearest": 0.4, "Gptq": 0.38, "Quick": 0.1, "LearnedRounding": 0.03}
    how = Sized(network, data, sizes, {})(uniform("w8"), None, None).kept.plan.reconstruction
    assert how is not None
    assert how.method == "brecq"
    # Where a look says that learning brings nothing, the cheapest is taken.
    how = Sized(network, data, sizes | {"Quick": 0.38}, {})(
        uniform("w8"), None, None
    ).kept.plan.reconstruction
    assert how is not None
    assert (how.method, list(how.compared)) == ("nearest", ["nearest", "gptq", "brecq"])


@pytest.mark.parametrize("uniform_after", [0.2, 0.7])
def test_a_uniform_plan_far_behind_is_learned_for_where_the_others_come_out_worse_than_it(
    network: Network, data: Data, uniform: Uniform, uniform_after: float
) -> None:
    ran = Sized(network, data, {"Gptq": 0.2, "Lapq": 0.6}, {"Gptq": 0.4, "Lapq": uniform_after})
    judged = ran(uniform("w8"), uniform("w8"), MethodName.LAPQ)
    assert ran.carried == [("Gptq", False), ("Gptq", True), ("Lapq", False), ("Lapq", True)]
    guard = judged.kept.plan.guard
    assert guard is not None
    assert guard.kept == ("uniform" if uniform_after < 0.6 else "plan")
    assert judged.kept.quality.loss == min(guard.uniform_loss, guard.plan_loss)
    assert judged.uniform is not None
    assert judged.uniform.quality.loss == guard.uniform_loss
    assert len(judged.plans) == 1
