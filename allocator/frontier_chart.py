"""The chart of a measured frontier: predicted and measured loss over size, and what accuracy it costs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .chart import SERIES, size_unit
from .measured_frontier import FrontierPoint, MeasuredFrontier
from .pareto import ParetoCurve
from .pareto_chart import ParetoData, ParetoPoint, draw_pareto_on, pareto_data
from .plan import Complexity, Measured

__all__ = ["DropSeries", "FrontierData", "draw_frontier", "frontier_data"]

LINEAR_POINTS = 1.0
"""Points of accuracy up to which the axis is linear."""


class DropSeries(NamedTuple):
    """Accuracy that some networks lose, over their size.

    Parameters
    ----------
    size : float array (points,)
        Bytes of all that is stored.
    drop : float array (points,)
        Points of accuracy lost against the float network.
    low, high : float array (points,)
        Ends of the paired interval; the drop itself where none is known.
    """

    size: NDArray[np.float64]
    drop: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


class FrontierData(NamedTuple):
    """The numbers of the chart.

    Parameters
    ----------
    pareto : ParetoData
        The loss over size.
    plans, uniform : DropSeries or None
        Accuracy lost over size; None without labels.
    data : str
        Name of the data, the number of samples, and the float accuracy where it is known.
    """

    pareto: ParetoData
    plans: DropSeries | None
    uniform: DropSeries | None
    data: str


def frontier_data(frontier: MeasuredFrontier) -> FrontierData:
    """Compute the numbers of the chart from the document alone."""
    curve = ParetoCurve(
        np.array(frontier.curve.weight_bits, np.int64),
        np.array(frontier.curve.loss),
        np.array(frontier.curve.bound_bits, np.int64),
        np.array(frontier.curve.bound_loss),
    )
    first = frontier.plans[0]
    complexity = Complexity(
        size_bits=first.weight_bits + frontier.fixed_bits,
        average_bits=first.average_bits,
        fixed_bits=frontier.fixed_bits,
        float_bits=frontier.float_bits,
        weight_count=frontier.weight_count,
    )
    plans, uniform = ([_pareto_point(point) for point in part] for part in (frontier.plans, frontier.uniform))
    return FrontierData(
        pareto_data(curve, complexity, plans=plans, uniform=uniform),
        _drops(frontier.plans, frontier.fixed_bits),
        _drops(frontier.uniform, frontier.fixed_bits),
        _described(first.measured),
    )


def draw_frontier(data: FrontierData) -> Figure:
    """Draw the loss over size as `draw_pareto` does, and below it the accuracy lost, where labels exist."""
    divisor, unit = size_unit(8 * data.pareto.size[-1])
    if data.plans is None:
        figure = Figure(figsize=(8.0, 5.6), layout="constrained")
        axes = lowest = figure.add_subplot()
    else:
        figure = Figure(figsize=(8.0, 8.0), layout="constrained")
        axes, lowest = figure.subplots(2, sharex=True, height_ratios=(5, 3))
        _draw_drops(lowest, data.plans, data.uniform, divisor)
    draw_pareto_on(axes, data.pareto)
    axes.set_title(data.data, fontsize=10, pad=8)
    lowest.set_xlabel(f"size of the network ({unit})")
    return figure


def _draw_drops(axes: Axes, plans: DropSeries, uniform: DropSeries | None, divisor: float) -> None:
    axes.axhline(0, color="0.4", linestyle=":", label="float network")
    for series, color, face, line, label in (
        (uniform, SERIES["orange"], "none", "none", "uniform option"),
        (plans, SERIES["black"], SERIES["black"], "-", "plan"),
    ):
        if series is None:
            continue
        axes.errorbar(
            8 * series.size / divisor,
            series.drop,
            yerr=(series.drop - series.low, series.high - series.drop),
            color=color,
            linestyle=line,
            linewidth=1.0,
            elinewidth=0.7,
            capsize=2,
            marker="D",
            markersize=4.5,
            markerfacecolor=face,
            label=f"{label}, with 95% interval",
        )
    # Linear around 0, where drops are told from noise; logarithmic beyond, where networks break down.
    axes.set_yscale("symlog", linthresh=LINEAR_POINTS, linscale=1.0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_ylabel("accuracy lost (points)")
    axes.grid(which="major", linewidth=0.4, alpha=0.6)
    axes.spines[["right", "top"]].set_visible(False)
    axes.legend(fontsize=8, loc="upper right")


def _pareto_point(point: FrontierPoint) -> ParetoPoint:
    return ParetoPoint(point.name, point.weight_bits, point.predicted_loss, point.measured.loss)


def _described(measured: Measured) -> str:
    accuracy = measured.float_accuracy
    known = "" if accuracy is None else f", float accuracy {100 * accuracy:.2f}%"
    return f"measured on {measured.data} ({measured.samples:,} samples{known})"


def _drops(points: tuple[FrontierPoint, ...], fixed_bits: int) -> DropSeries | None:
    rows = []
    for point in points:
        measured = point.measured
        if measured.accuracy is None or measured.float_accuracy is None:
            return None
        lost = measured.float_accuracy - measured.accuracy
        low, high = (measured.drop.low, measured.drop.high) if measured.drop else (lost, lost)
        # Rounding must not turn a margin of 0 negative.
        ends = (min(low, lost), max(high, lost))
        rows.append(((point.weight_bits + fixed_bits) / 8, 100 * lost, 100 * ends[0], 100 * ends[1]))
    return DropSeries(*np.array(rows).T) if rows else None
