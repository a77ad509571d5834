"""The plan as a picture: stored bits of every layer in network order, and the mix of its strips."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .chart import SERIES, label_layers, layer_chart_width, option_colors, size_unit
from .plan import Plan
from .unit import parse_unit

__all__ = ["PlanData", "draw_plan", "plan_data"]


class PlanData(NamedTuple):
    """The numbers of a plan chart.

    Parameters
    ----------
    title : str
        Budget and size in words.
    names : tuple of str
        Layers in network order.
    mean_bits : float array (layers,)
        Stored bits per weight.
    average_bits : float
        Stored bits per weight over the whole plan.
    options : tuple of str
        Options that occur, in the order of the plan's option set.
    shares : float array (options, layers)
        Share of the layer's strips that has the option; columns add up to 1.
    strips : str
        What the strips are called: ``channels``, or ``strips of inputs``.
    """

    title: str
    names: tuple[str, ...]
    mean_bits: NDArray[np.float64]
    average_bits: float
    options: tuple[str, ...]
    shares: NDArray[np.float64]
    strips: str


def plan_data(plan: Plan) -> PlanData:
    """Compute the numbers of a plan chart."""
    shares = [layer.option_shares() for layer in plan.layers]
    used = {option for share in shares for option in share}
    # An edited plan may use options that its option set does not have.
    known = [option for option in plan.options if option in used]
    options = (*known, *sorted(used.difference(known)))
    size_bits = plan.complexity.size_bits
    one, unit = size_unit(size_bits)
    return PlanData(
        title=(
            f"Plan {plan.aim()}, chosen per {plan.unit}: "
            f"{plan.complexity.average_bits:.2f} bits per weight, {size_bits / one:.3g} {unit}"
        ),
        names=tuple(layer.name for layer in plan.layers),
        mean_bits=np.array([layer.mean_bits for layer in plan.layers]),
        average_bits=plan.complexity.average_bits,
        options=options,
        shares=np.array([[share.get(option, 0.0) for share in shares] for option in options]),
        strips="strips of inputs" if parse_unit(plan.unit).cut else "channels",
    )


def draw_plan(data: PlanData) -> Figure:
    """Draw a plan chart: bars of stored bits, divided by the share of strips that each option has.

    One colour per option, dark for few bits and light for many; a dashed line marks the plan's average. The
    divisions show how many strips have an option, the height how many bits the layer takes per weight.
    """
    layers = len(data.names)
    width = layer_chart_width(layers)
    figure = Figure(figsize=(width, 5.2), layout="constrained")
    axes = figure.add_subplot()
    colors = option_colors(len(data.options))
    position = np.arange(layers)
    bottom = np.zeros(layers)
    for option, color, share in zip(data.options, colors, data.shares, strict=True):
        height = share * data.mean_bits
        axes.bar(position, height, 0.86, bottom, color=color, edgecolor="white", linewidth=0.3, label=option)
        bottom += height
    axes.axhline(data.average_bits, color=SERIES["black"], linestyle="--", linewidth=1)
    axes.annotate(
        f" average {data.average_bits:.2f}",
        (layers - 0.3, data.average_bits),
        annotation_clip=False,
        va="center",
        fontsize=8,
    )
    mixed = bool((data.shares.max(axis=0) < 1).any())
    axes.set_ylabel("stored bits per weight" + (f"\n(divided by share of {data.strips})" if mixed else ""))
    axes.set_title(data.title, fontsize=10)
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    label_layers(axes, data.names, width)
    columns = 1 + (len(data.options) - 1) // 14
    figure.legend(loc="outside right upper", title="option", fontsize=8, ncols=columns, reverse=True)
    return figure
