"""Embeddings, alone or tied to the last layer, go through every method and correction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from apportion.allocator import Plan
from apportion.network import Data, Network, capture, rows
from apportion.quantizer import parse_options
from apportion.reconstruct import (
    AdaQuant,
    Corrected,
    Correction,
    Finalized,
    Gptq,
    Granularity,
    Lapq,
    LearnedRounding,
    Learning,
    Method,
    Nearest,
    StraightThrough,
    finalize_nearest,
    measure_finalized,
    multipoint_plan,
)
from apportion.reconstruct.gptq import gptq_layer
from apportion.reconstruct.gram import InputGram

PlanOf = Callable[..., Plan]
Check = Callable[[Network, Plan, Finalized], None]


class Language(nn.Module):
    """A table, two residual layers, and a head with a bias, tied to the table where that is wanted."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(12, 16)
        self.up = nn.Linear(16, 24)
        self.down = nn.Linear(24, 16)
        self.head = nn.Linear(16, 12)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        x = x + self.down(self.up(x.cumsum(1) / 4).relu())
        return self.head(x)


@pytest.fixture(scope="module")
def ids() -> Data:
    return Data(torch.randint(0, 12, (40, 6), generator=torch.Generator().manual_seed(3)), None, "ids")


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "apart"])
def language(request: pytest.FixtureRequest, ids: Data) -> Network:
    return capture(Language(request.param), ids.inputs)


def learned(granularity: Granularity) -> LearnedRounding:
    return LearnedRounding(granularity, learning=Learning(iterations=40, batch=8))


@pytest.mark.parametrize(
    "method",
    [
        Nearest(),
        Gptq(),
        Gptq(sequential=False),
        AdaQuant(learning=StraightThrough(iterations=20)),
        AdaQuant(start=None, learning=StraightThrough(iterations=20)),
        Lapq(evaluations=4, samples=16),
        learned(Granularity.LAYER),
        learned(Granularity.BLOCK),
        learned(Granularity.NETWORK),
    ],
    ids=lambda method: f"{type(method).__name__}-{getattr(method, 'granularity', '')}",
)
def test_every_method_finds_what_can_be_stored_and_is_no_worse(
    method: Method, language: Network, ids: Data, plan_of: PlanOf, check_storable: Check
) -> None:
    plan = plan_of(language, ["w3", "w4", "w2x2"])
    found = method.finalize(language, plan, ids)
    check_storable(language, plan, found)
    nearest = finalize_nearest(language, plan)
    loss, before = (measure_finalized(language, each, ids).loss for each in (found, nearest))
    # A random network: what is made up for in one place is not always made up for at the end.
    assert loss < 1.5 * before
    table = language.layers[0]
    if not table.products and not isinstance(method, Lapq):
        assert torch.equal(found.layers[0].dequantize(), nearest.layers[0].dequantize())


def test_a_tied_table_is_rounded_for_the_inputs_of_the_last_layer(
    language: Network, ids: Data, plan_of: PlanOf
) -> None:
    table = language.layers[0]
    if not table.products:
        pytest.skip("not tied")
    plan, settings = plan_of(language, ["w3"]), Gptq(sequential=False, weighted=False)
    found = settings.finalize(language, plan, ids).layers[0]
    entering: list[Tensor] = []

    def note(call: object, source: Tensor, result: Tensor) -> Tensor:
        if source.is_floating_point() and result.shape[-1] == 12:
            entering.append(source)
        return result

    language.run(ids.inputs, on_layer=note)
    x = entering[0].reshape(-1, 16)
    gram = InputGram((2 * x.T @ x).double()[None])
    start = finalize_nearest(language, plan).layers[0]
    expected = gptq_layer(rows(table, language.weight(table)), gram, start, replace(settings, damping=1.0))
    assert torch.equal(found.dequantize(), expected.dequantize())


@pytest.mark.parametrize("correction", list(Correction))
def test_corrections_leave_tables_alone(
    correction: Correction, language: Network, ids: Data, plan_of: PlanOf, check_storable: Check
) -> None:
    plan = plan_of(language, ["w3", "w4"])
    found = Corrected(Gptq(), (correction,)).finalize(language, plan, ids)
    check_storable(language, plan, found)
    start = Gptq().finalize(language, plan, ids)
    assert torch.equal(found.layers[0].dequantize(), start.layers[0].dequantize())


def test_points_of_a_table_are_spent_on_the_rows_of_greatest_error(language: Network, ids: Data) -> None:
    (base,) = parse_options("w2")
    plan = multipoint_plan(language, ids, base, 2, "5b")
    assert set(plan.layers[0].strip_options()) <= {"w2", "w2x2"}
