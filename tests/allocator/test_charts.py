"""The numbers of the charts, what the drawings show of them, and how they are saved."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apportion.allocator import (
    Complexity,
    LayerPlan,
    ParetoCurve,
    ParetoPoint,
    Plan,
    draw_pareto,
    draw_plan,
    pareto_data,
    plan_data,
    save_figure,
)
from apportion.errors import InputError

COMPLEXITY = Complexity(
    size_bits=9600, average_bits=4.0, fixed_bits=1600, float_bits=80_000, weight_count=2000
)
CURVE = ParetoCurve(
    np.array([4000, 8000]), np.array([1.0, 0.1]), np.array([4000, 6000, 8000]), np.array([1.0, 0.3, 0.1])
)


def plan_of(options: list[list[str]], names: list[str] | None = None) -> Plan:
    layers = tuple(
        LayerPlan.from_strips(
            names[index] if names else f"net.block{index}.conv",
            (len(chosen), 9),
            chosen,
            size_bits=9 * sum(int(option[1:]) for option in chosen),
            predicted_loss=0.1,
            mean_bits=sum(int(option[1:]) for option in chosen) / len(chosen),
        )
        for index, chosen in enumerate(options)
    )
    return Plan(
        unit="channel",
        budgets=("4b",),
        complexity=COMPLEXITY,
        predicted_loss=0.1,
        profile="0123456789abcdef",
        options=("w2", "w3", "w4", "w10"),
        quantizer={},
        assignment="0123456789abcdef",
        versions={},
        layers=layers,
    )


def only_axes(figure: Figure) -> Axes:
    assert len(figure.axes) == 1
    return figure.axes[0]


def test_plan_numbers_are_bits_per_layer_and_shares_of_channels() -> None:
    data = plan_data(plan_of([["w4", "w2", "w2", "w2"], ["w10", "w10"]]))
    assert data.names == ("net.block0.conv", "net.block1.conv")
    assert data.options == ("w2", "w4", "w10")
    np.testing.assert_array_equal(data.shares, [[0.75, 0.0], [0.25, 0.0], [0.0, 1.0]])
    np.testing.assert_array_equal(data.mean_bits, [2.5, 10.0])
    assert data.average_bits == 4.0
    assert "Plan for 4b, chosen per channel: 4.00 bits per weight, 1.17 KiB" in data.title


def test_an_option_outside_the_option_set_is_shown_after_the_others() -> None:
    assert plan_data(plan_of([["w5", "w2"]])).options == ("w2", "w5")


def test_the_bars_of_a_layer_stack_up_to_its_bits() -> None:
    data = plan_data(plan_of([["w4", "w2", "w2", "w2"], ["w10", "w10"]]))
    axes = only_axes(draw_plan(data))
    tops = np.zeros(2)
    for bar in axes.patches:
        tops[round(bar.get_x() + bar.get_width() / 2)] += bar.get_height()
    np.testing.assert_allclose(tops, data.mean_bits)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["block0.conv", "block1.conv"]


@pytest.mark.parametrize("layers", [1, 20, 150, 600])
def test_layer_names_never_overlap_and_the_width_grows_but_not_for_ever(layers: int) -> None:
    figure = draw_plan(plan_data(plan_of([["w4"]] * layers)))
    figure.draw_without_rendering()
    axes = only_axes(figure)
    boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
    assert all(left.x1 <= right.x0 for left, right in pairwise(boxes))
    assert len(boxes) >= min(layers, 100)
    assert 7 <= figure.get_figwidth() <= 24


def test_long_layer_names_keep_their_ends() -> None:
    names = ["encoder." + "very_long_name_" * 5 + end for end in ("query", "key")]
    axes = only_axes(draw_plan(plan_data(plan_of([["w4"]] * 2, names))))
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert all(len(label) <= 26 and label.startswith("…") for label in labels)
    assert [label[-4:] for label in labels] == ["uery", "_key"]


def test_pareto_numbers_are_sizes_of_the_whole_network() -> None:
    data = pareto_data(CURVE, COMPLEXITY, uniform=[ParetoPoint("w4", 8000, 0.2, 0.05)])
    np.testing.assert_array_equal(data.size, [700.0, 1200.0])
    np.testing.assert_array_equal(data.bound_size, [700.0, 950.0, 1200.0])
    assert data.floor == 0.05
    assert data.plan is None


def test_predicted_and_measured_points_differ_in_shape_and_uniform_options_are_named() -> None:
    uniform = [ParetoPoint("w2", 4000, 2.0, 2.5), ParetoPoint("w4", 8000, 0.2)]
    data = pareto_data(CURVE, COMPLEXITY, plan=ParetoPoint("plan", 7900, 0.11, 0.12), uniform=uniform)
    axes = only_axes(draw_pareto(data))
    markers = {line.get_label(): line.get_marker() for line in axes.lines if line.get_marker() != "None"}
    assert markers == {
        "uniform option, predicted": "o",
        "uniform option, measured": "D",
        "plan, predicted": "o",
        "plan, measured": "D",
    }
    assert [text.get_text() for text in axes.texts] == ["w2", "w4"]
    assert axes.get_yscale() == "log"


def test_the_legend_says_what_the_curve_holds_fixed() -> None:
    axes = only_axes(draw_pareto(pareto_data(CURVE, COMPLEXITY, held="these activations")))
    assert [line.get_label() for line in axes.lines] == [
        "bound (linear relaxation), at these activations",
        "best choice, predicted, at these activations",
    ]


def test_of_uniform_options_at_one_place_only_the_first_is_named() -> None:
    uniform = [ParetoPoint("w4", 8000, 0.2), ParetoPoint("w2x2", 8010, 0.201)]
    axes = only_axes(draw_pareto(pareto_data(CURVE, COMPLEXITY, uniform=uniform)))
    assert [text.get_text() for text in axes.texts] == ["w4"]


@pytest.mark.parametrize("losses", [[0.5, -0.1], [0.0, -0.1], [0.5, 0.0]])
def test_losses_without_a_logarithm_are_drawn_at_the_floor(losses: list[float]) -> None:
    curve = ParetoCurve(np.array([4000, 8000]), np.array(losses), np.array([4000, 8000]), np.array(losses))
    figure = draw_pareto(pareto_data(curve, COMPLEXITY, plan=ParetoPoint("plan", 8000, losses[1])))
    figure.draw_without_rendering()
    assert only_axes(figure).get_yscale() == ("log" if max(losses) > 0 else "linear")


def test_a_figure_is_saved_twice_with_the_same_bytes(tmp_path: Path) -> None:
    plan = plan_of([["w4", "w2"]])
    saved = [save_figure(draw_plan(plan_data(plan)), tmp_path / name / "plan.v1") for name in "ab"]
    for first, second in zip(*saved, strict=True):
        assert first.read_bytes() == second.read_bytes()
    assert [path.name for path in saved[0]] == ["plan.v1.png", "plan.v1.svg"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["plan.v1.png", "plan.v1.svg"]


def test_a_folder_that_cannot_be_written_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*plan"):
        save_figure(Figure(), tmp_path / "file" / "plan")


def test_a_chart_of_strips_of_inputs_does_not_call_them_channels() -> None:
    by_channel = plan_of([["w2", "w8"]])
    assert plan_data(by_channel).strips == "channels"
    layer = LayerPlan.from_strips(
        "fc", (4, 12), ["w2", "w8"], cut="inputs:6", size_bits=1, predicted_loss=0.0, mean_bits=5.0
    )
    data = plan_data(by_channel.model_copy(update={"layers": (layer,), "unit": "inputs:6"}))
    assert data.strips == "strips of inputs"
    assert draw_plan(data).axes[0].get_ylabel().endswith("(divided by share of strips of inputs)")
