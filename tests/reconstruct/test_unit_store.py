"""A method that is cut off goes on where it stopped, to the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from apportion.allocator import ActivationChoice, ActivationPlan, Plan
from apportion.network import Data, Network, capture
from apportion.reconstruct import (
    AdaQuant,
    Corrected,
    Correction,
    Finalized,
    Gptq,
    LearnedRounding,
    Learning,
    Method,
    Nearest,
    StraightThrough,
    UnitReport,
    finalize_nearest,
)
from apportion.reconstruct.unit_store import UnitStore

LEARNED = LearnedRounding(learning=Learning(iterations=20, batch=16))
ADAQUANT = AdaQuant(learning=StraightThrough(iterations=20))
CUT_OFF = 3


class CutOffError(Exception):
    """In the place of a power failure."""


def cut_off(method: Method, network: Network, plan: Plan, data: Data, store: Path) -> None:
    """Run a method until its third unit is done."""

    def stop(done: int, total: int) -> None:
        if done == CUT_OFF:
            raise CutOffError

    with pytest.raises(CutOffError):
        method.finalize(network, plan, data, stop, store)


def same(first: Finalized, second: Finalized) -> bool:
    assert first.biases.keys() == second.biases.keys()
    return all(torch.equal(bias, second.biases[name]) for name, bias in first.biases.items()) and all(
        torch.equal(one.rows.codes, other.rows.codes) and torch.equal(one.rows.steps, other.rows.steps)
        for layer, twin in zip(first.layers, second.layers, strict=True)
        for one, other in zip(layer.parts, twin.parts, strict=True)
    )


@pytest.mark.parametrize(
    "method",
    [Gptq(), Gptq(sequential=False), LEARNED, ADAQUANT, Corrected(Gptq(), (Correction.BIAS,))],
    ids=["gptq", "parallel", "brecq", "adaquant", "corrected"],
)
def test_a_run_that_is_cut_off_goes_on_to_the_same_weights(
    network: Network, plan: Plan, data: Data, tmp_path: Path, method: Method
) -> None:
    cut_off(method, network, plan, data, tmp_path)
    assert same(method.finalize(network, plan, data, store=tmp_path), method.finalize(network, plan, data))


def test_only_what_is_missing_is_learned(network: Network, plan: Plan, data: Data, tmp_path: Path) -> None:
    cut_off(LEARNED, network, plan, data, tmp_path)
    told: list[UnitReport] = []
    LEARNED.finalize(network, plan, data, store=tmp_path, on_unit=told.append)
    everything: list[UnitReport] = []
    LEARNED.finalize(network, plan, data, on_unit=everything.append)
    assert [report.layers for report in told] == [report.layers for report in everything[CUT_OFF:]]
    told.clear()
    LEARNED.finalize(network, plan, data, store=tmp_path, on_unit=told.append)
    assert told == []


def test_a_damaged_unit_is_done_again(network: Network, plan: Plan, data: Data, tmp_path: Path) -> None:
    whole = Gptq().finalize(network, plan, data, store=tmp_path)
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert len(files) == len(network.layers)
    files[0].write_bytes(files[0].read_bytes()[:-1])
    files[1].write_bytes(b"")
    files[2].unlink()
    assert same(Gptq().finalize(network, plan, data, store=tmp_path), whole)


def test_units_of_other_settings_plans_and_data_are_not_seen(
    network: Network, plan: Plan, data: Data, tmp_path: Path
) -> None:
    fewer = Data(data.inputs[:32], None, data.name)
    for settings, inputs in ((Gptq(), data), (Gptq(damping=0.1), data), (Gptq(), fewer)):
        kept = settings.finalize(network, plan, inputs, store=tmp_path)
        assert same(kept, settings.finalize(network, plan, inputs))
    assert len(list(tmp_path.iterdir())) == 3


def test_nothing_is_kept_of_rounding_to_nearest(
    network: Network, plan: Plan, data: Data, tmp_path: Path
) -> None:
    Nearest().finalize(network, plan, data, store=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_units_of_other_zero_points_are_not_seen(
    network: Network, plan: Plan, data: Data, tmp_path: Path
) -> None:
    def stored(zero_point: int) -> Path:
        choice = ActivationChoice(bits=8, step=0.1, zero_point=zero_point, predicted_loss=0.0)
        value = ActivationPlan(name="relu", elements=4, option="a8", readers={}, choices={"a8": choice})
        changed = plan.model_copy(update={"activations": (value,)})
        store = UnitStore.of(tmp_path, Gptq(), network, changed, data)
        nearest = finalize_nearest(network, plan)
        store.save(0, nearest.layers[:1])
        (newest,) = set(tmp_path.iterdir()) - seen
        seen.add(newest)
        return newest

    seen: set[Path] = set()
    assert stored(3) != stored(7)


def test_units_of_another_program_with_the_same_tensors_are_not_seen(
    plan_of: Callable[..., Plan], tmp_path: Path
) -> None:
    class Wave(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (3 * x).sin()

    inputs = torch.randn(64, 12, generator=torch.Generator().manual_seed(2))
    drawn = Data(inputs, None, "normal")
    found = []
    for between in nn.ReLU(), Wave():
        torch.manual_seed(0)
        network = capture(nn.Sequential(nn.Linear(12, 16), between, nn.Linear(16, 5)).eval(), inputs[:2])
        chosen = plan_of(network, ["w2"])
        found.append(Gptq().finalize(network, chosen, drawn, store=tmp_path))
        assert same(found[-1], Gptq().finalize(network, chosen, drawn))
    assert not same(*found)
