"""The Pareto chart: what loss every size buys, where the plan stands, and what uniform options would do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .chart import SERIES, size_unit
from .pareto import ParetoCurve
from .plan import Complexity

__all__ = ["ParetoData", "ParetoPoint", "draw_pareto", "draw_pareto_on", "pareto_data"]

LABEL_SHARE = np.array([0.05, 0.03])
"""Width and height of a name, as shares of the axes."""


class ParetoPoint(NamedTuple):
    """One storage of the network in a Pareto chart.

    Parameters
    ----------
    label : str
        An option, or what the plan is called.
    weight_bits : int
        Bits of the quantized weights with their overheads.
    predicted : float or None
        Loss that the scores predict.
    measured : float or None
        Loss that was measured.
    """

    label: str
    weight_bits: int
    predicted: float | None = None
    measured: float | None = None


class ParetoData(NamedTuple):
    """The numbers of a Pareto chart: sizes in bytes of all that is stored, losses in nats.

    Parameters
    ----------
    size, loss : float array (points,)
        Best choices for their size.
    bound_size, bound_loss : float array (vertices,)
        Bound of the linear relaxation.
    plan : ParetoPoint or None
        The chosen plan.
    plans : tuple of ParetoPoint
        Plans for several budgets, rising in size.
    uniform : tuple of ParetoPoint
        The same option for every layer.
    fixed_bits, weight_count : int
        What turns bits of the weights into sizes and averages.
    floor : float
        Least positive loss of all, where losses of 0 and below are drawn; 0 where none is positive.
    held : str
        What is the same for all choices of the curve, in words; empty where nothing is.
    """

    size: NDArray[np.float64]
    loss: NDArray[np.float64]
    bound_size: NDArray[np.float64]
    bound_loss: NDArray[np.float64]
    plan: ParetoPoint | None
    plans: tuple[ParetoPoint, ...]
    uniform: tuple[ParetoPoint, ...]
    fixed_bits: int
    weight_count: int
    floor: float
    held: str = ""


def pareto_data(
    curve: ParetoCurve,
    complexity: Complexity,
    *,
    plan: ParetoPoint | None = None,
    plans: Sequence[ParetoPoint] = (),
    uniform: Sequence[ParetoPoint] = (),
    held: str = "",
) -> ParetoData:
    """Compute the numbers of a Pareto chart.

    Parameters
    ----------
    curve : ParetoCurve
        From `pareto_curve`.
    complexity : Complexity
        Of any plan of the network, for `fixed_bits` and `weight_count`.
    plan : ParetoPoint, optional
        The chosen plan.
    plans : sequence of ParetoPoint
        Plans for several budgets.
    uniform : sequence of ParetoPoint
        The same option for every layer, each with what is known of it.
    held : str
        What is the same for all choices of the curve, in words, for the legend.
    """
    points = [*uniform, *plans, *([plan] if plan else [])]
    losses = [value for point in points for value in (point.predicted, point.measured) if value is not None]
    shown = np.concatenate((curve.loss, curve.bound_loss, np.array(losses)))
    positive = shown[shown > 0]
    return ParetoData(
        size=(curve.cost + complexity.fixed_bits) / 8,
        loss=curve.loss,
        bound_size=(curve.bound_cost + complexity.fixed_bits) / 8,
        bound_loss=curve.bound_loss,
        plan=plan,
        plans=tuple(sorted(plans, key=lambda point: point.weight_bits)),
        uniform=tuple(uniform),
        fixed_bits=complexity.fixed_bits,
        weight_count=complexity.weight_count,
        floor=float(positive.min()) if len(positive) else 0.0,
        held=held,
    )


def draw_pareto(data: ParetoData) -> Figure:
    """Draw a Pareto chart: loss on a logarithmic axis over the size of the network, average bits above.

    Predictions are round and measurements are diamonds; a thin line joins the two of one network. The plan's
    are larger and filled, those of uniform options are open and named.
    """
    figure = Figure(figsize=(8.0, 5.4), layout="constrained")
    axes = figure.add_subplot()
    draw_pareto_on(axes, data)
    axes.set_xlabel(f"size of the network ({size_unit(8 * data.size[-1])[1]})")
    return figure


def draw_pareto_on(axes: Axes, data: ParetoData) -> None:
    """Draw a Pareto chart into given axes, all but the name of the size axis."""
    divisor = size_unit(8 * data.size[-1])[0]
    blue, orange, black = SERIES["blue"], SERIES["orange"], SERIES["black"]
    bound, best = (np.maximum(loss, data.floor) for loss in (data.bound_loss, data.loss))
    held = f", at {data.held}" if data.held else ""
    label = f"bound (linear relaxation){held}"
    axes.plot(8 * data.bound_size / divisor, bound, color="0.4", linestyle=":", label=label)
    label = f"best choice, predicted{held}"
    axes.step(8 * data.size / divisor, best, where="post", color=blue, label=label)
    _draw_points(axes, data, data.uniform, divisor, _Look(orange, "none", 5.0, "uniform option"))
    _draw_points(axes, data, data.plans, divisor, _Look(black, black, 4.5, "plan", joined=True))
    if data.plan is not None:
        _draw_points(axes, data, (data.plan,), divisor, _Look(black, black, 8.0, data.plan.label))
    if data.floor > 0:
        axes.set_yscale("log")
    _name_points(axes, data, divisor)
    axes.set_ylabel("loss (KL to the float network, nats)")
    axes.grid(which="major", linewidth=0.4, alpha=0.6)
    axes.spines["right"].set_visible(False)
    averages = axes.secondary_xaxis(
        "top",
        functions=(
            lambda place: (np.asarray(place) * divisor - data.fixed_bits) / data.weight_count,
            lambda average: (np.asarray(average) * data.weight_count + data.fixed_bits) / divisor,
        ),
    )
    averages.set_xlabel("average stored bits per weight")
    axes.legend(fontsize=8)


class _Look(NamedTuple):
    """How a kind of point is drawn and called."""

    edge: str
    face: str
    size: float
    name: str
    joined: bool = False


def _draw_points(
    axes: Axes, data: ParetoData, points: Sequence[ParetoPoint], divisor: float, look: _Look
) -> None:
    for marker, kind in (("o", "predicted"), ("D", "measured")):
        shown = [(point.weight_bits, getattr(point, kind)) for point in points]
        shown = [(bits, loss) for bits, loss in shown if loss is not None]
        if shown:
            axes.plot(
                [(bits + data.fixed_bits) / divisor for bits, _ in shown],
                [max(loss, data.floor) for _, loss in shown],
                linestyle="-" if look.joined and kind == "measured" else "none",
                linewidth=1.0,
                marker=marker,
                markersize=look.size,
                color=look.edge,
                markerfacecolor=look.face,
                zorder=4,
                label=f"{look.name}, {kind}",
            )
    for point in points:
        if point.predicted is not None and point.measured is not None:
            place = (point.weight_bits + data.fixed_bits) / divisor
            ends = [max(point.predicted, data.floor), max(point.measured, data.floor)]
            axes.plot([place, place], ends, color=look.edge, linewidth=0.7, zorder=3)


def _name_points(axes: Axes, data: ParetoData, divisor: float) -> None:
    """Name the uniform options, leaving out a name that would fall on one already written."""
    written: list[NDArray[np.float64]] = []
    to_share = axes.transScale + axes.transLimits
    for point in data.uniform:
        known = [loss for loss in (point.predicted, point.measured) if loss is not None]
        if not known:
            continue
        place = (point.weight_bits + data.fixed_bits) / divisor, max(*known, data.floor)
        share = np.asarray(to_share.transform(place))
        if all(np.any(np.abs(share - other) > LABEL_SHARE) for other in written):
            axes.annotate(point.label, place, xytext=(4, 4), textcoords="offset points", fontsize=8)
            written.append(share)
