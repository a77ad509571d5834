"""The document of a measured frontier, and what its chart shows of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from apportion.allocator import (
    Drop,
    DropKind,
    FrontierCurve,
    FrontierPoint,
    Measured,
    MeasuredFrontier,
    ParetoCurve,
    draw_frontier,
    frontier_data,
    read_frontier,
    write_frontier,
)
from apportion.errors import InputError


def point(name: str, bits: int, loss: float, accuracy: float | None = None, **changed: Any) -> FrontierPoint:
    drop = None
    if accuracy is not None:
        drop = Drop(kind=DropKind.ACCURACY, value=0.9 - accuracy, low=0.88 - accuracy, high=0.93 - accuracy)
    measured = Measured(
        loss=loss,
        standard_error=0.1 * loss,
        samples=100,
        data="test images",
        accuracy=accuracy,
        float_accuracy=None if accuracy is None else 0.9,
        drop=drop,
    )
    settings: dict[str, Any] = {
        "name": name,
        "unit": "channel",
        "weight_bits": bits,
        "average_bits": bits / 2000,
        "predicted_loss": 0.8 * loss,
        "measured": measured,
    }
    return FrontierPoint(**settings | changed)


def frontier_of(plans: list[FrontierPoint], uniform: list[FrontierPoint]) -> MeasuredFrontier:
    curve = ParetoCurve(
        np.array([4000, 8000]), np.array([1.0, 0.1]), np.array([4000, 6000, 8000]), np.array([1.0, 0.3, 0.1])
    )
    return MeasuredFrontier(
        profile="0123456789abcdef",
        options=("w2", "w4"),
        fixed_bits=1600,
        float_bits=80_000,
        weight_count=2000,
        curve=FrontierCurve.of(curve),
        plans=tuple(plans),
        uniform=tuple(uniform),
    )


LABELLED = frontier_of(
    [point("2b", 4000, 1.0, 0.5), point("4b", 8000, 0.1, 0.89)], [point("w4", 8200, 0.3, 0.85, unit="layer")]
)
UNLABELLED = frontier_of([point("2b", 4000, 1.0), point("4b", 8000, 0.1)], [])


def test_a_frontier_that_is_written_is_read_back_the_same(tmp_path: Path) -> None:
    for frontier in (LABELLED, UNLABELLED):
        write_frontier(tmp_path / "frontier.json", frontier)
        assert read_frontier(tmp_path / "frontier.json") == frontier


def test_a_frontier_with_an_unknown_field_is_refused_by_its_name(tmp_path: Path) -> None:
    document = json.loads(LABELLED.model_dump_json())
    document["plans"][0]["colour"] = "red"
    (tmp_path / "frontier.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"plans\.0\.colour"):
        read_frontier(tmp_path / "frontier.json")


def test_plans_out_of_order_and_points_of_different_data_are_refused() -> None:
    plans = list(LABELLED.plans)
    with pytest.raises(ValidationError, match="rise in size"):
        frontier_of(plans[::-1], [])
    other = plans[1].measured.model_copy(update={"data": "other images"})
    with pytest.raises(ValidationError, match="different data"):
        frontier_of([plans[0], plans[1].model_copy(update={"measured": other})], [])


def test_a_curve_without_a_loss_for_every_size_is_refused() -> None:
    with pytest.raises(ValidationError, match="a loss for every number of bits"):
        FrontierCurve(weight_bits=(1, 2), loss=(0.5,), bound_bits=(1,), bound_loss=(0.5,))


def test_the_numbers_of_the_chart_are_sizes_of_the_network_and_points_lost() -> None:
    data = frontier_data(LABELLED)
    assert [plan.measured for plan in data.pareto.plans] == [1.0, 0.1]
    assert data.plans is not None
    np.testing.assert_allclose(data.plans.size, [700.0, 1200.0])
    np.testing.assert_allclose(data.plans.drop, [40.0, 1.0])
    np.testing.assert_allclose(data.plans.low, [38.0, -1.0])
    np.testing.assert_allclose(data.plans.high, [43.0, 4.0])
    assert data.data == "measured on test images (100 samples, float accuracy 90.00%)"


def test_the_chart_shows_what_accuracy_is_lost_below_the_loss_where_there_are_labels_only() -> None:
    figure = draw_frontier(frontier_data(LABELLED))
    figure.draw_without_rendering()
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "loss (KL to the float network, nats)",
        "accuracy lost (points)",
    ]
    assert figure.axes[1].get_xlabel() == "size of the network (KiB)"
    figure = draw_frontier(frontier_data(UNLABELLED))
    figure.draw_without_rendering()
    assert len(figure.axes) == 1


def test_plans_are_joined_by_their_measured_losses_and_uniform_options_are_named() -> None:
    axes = draw_frontier(frontier_data(LABELLED)).axes[0]
    styles = {line.get_label(): (line.get_marker(), line.get_linestyle()) for line in axes.lines}
    assert styles["plan, measured"] == ("D", "-")
    assert styles["plan, predicted"] == ("o", "None")
    assert styles["uniform option, measured"] == ("D", "None")
    assert [text.get_text() for text in axes.texts] == ["w4"]
