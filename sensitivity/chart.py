"""The sensitivity chart: what every option costs every layer, and which one a plan took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from ..allocator import Plan, label_layers, layer_chart_width
from ..errors import InputError
from .profile import Profile

__all__ = ["SensitivityData", "draw_sensitivity", "sensitivity_data"]

Color: TypeAlias = tuple[float, float, float, float]

# More options than this cannot be told apart by their own marker: a colour scale takes the legend's place.
MOST_IN_LEGEND = 10
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
# Of a whole layer, and of the smallest share: a ring must not hide the mark that it surrounds.
WIDEST_RING_AREA, SMALLEST_RING_AREA = 170.0, 50.0
# The options of a layer stand side by side over this part of its place, so that their bars do not overlap.
SPREAD = 0.62
LEGEND_INCHES = 2.0


@dataclass(frozen=True, eq=False)
class SensitivityData:
    """The numbers of the chart.

    Attributes
    ----------
    layers, options : tuple of str
        In network order; in the order of the profile.
    code_bits : float64 array (options,)
        Bits of the codes of one weight, ``bits * points``, overheads aside.
    points : int64 array (options,)
    loss, error : float64 array (layers, options)
        KL to the float network when only that layer is quantized, and its standard error, in nats; NaN where
        the option does not fit the layer.
    low, high : float64 array (layers, options)
        Ends of the error bars, ``loss - error`` and ``loss + error``, raised to `floor`.
    floor : float
        Where the axis ends: losses that are 0 or negative have no logarithm and are drawn there.
    share : float64 array (layers, options) or None
        Share of the layer's channels that the plan stores so; every row adds up to 1. None without a plan.
    """

    layers: tuple[str, ...]
    options: tuple[str, ...]
    code_bits: NDArray[np.float64]
    points: NDArray[np.int64]
    loss: NDArray[np.float64]
    error: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    floor: float
    share: NDArray[np.float64] | None


def sensitivity_data(profile: Profile, plan: Plan | None = None) -> SensitivityData:
    """The numbers of the sensitivity chart.

    Parameters
    ----------
    plan : Plan, optional
        Its choices are marked: the option of each layer, or the mix of its channels.

    Raises
    ------
    InputError
        The plan has other layers than the profile, or an option that the profile has no score for.
    """
    shape = (len(profile.layers), len(profile.options))
    loss, error = np.full(shape, np.nan), np.full(shape, np.nan)
    for row, layer in enumerate(profile.layers):
        for score in layer.scores:
            column = profile.options.index(score.option)
            loss[row, column], error[row, column] = score.loss, score.standard_error
    positive = loss[loss > 0]
    floor = float(positive.min()) / 2 if positive.size else 1e-12
    parsed = profile.parsed_options()
    return SensitivityData(
        layers=tuple(layer.name for layer in profile.layers),
        options=profile.options,
        code_bits=np.array([option.bits * option.points for option in parsed], np.float64),
        points=np.array([option.points for option in parsed], np.int64),
        loss=loss,
        error=error,
        low=np.maximum(loss - error, floor),
        high=np.maximum(loss + error, floor),
        floor=floor,
        share=None if plan is None else _shares(profile, plan),
    )


def draw_sensitivity(data: SensitivityData, *, title: str = "Sensitivity of the layers") -> Figure:
    """Draw loss over layers, one mark per option on a logarithmic axis, with one standard error each way.

    Colours go from dark (few bits) to light (many), also in grey. Up to ten options have a marker and a
    place in the legend each; beyond that a colour scale shows their bits, and markers tell the number of
    points. What a plan chose is ringed; of a layer with mixed channels every option used has a ring, the
    larger the more channels have it.
    """
    width = layer_chart_width(len(data.layers))
    figure = Figure(figsize=(width + LEGEND_INCHES, 5.5), layout="constrained")
    axes = figure.add_subplot()
    scale = Normalize(float(data.code_bits.min()), max(float(data.code_bits.max()), data.code_bits.min() + 1))
    # The brightest yellows vanish on white paper; what is left falls in darkness also when printed grey.
    colors = ListedColormap(colormaps["viridis"](np.linspace(0.0, 0.9, 256)))
    few = len(data.options) <= MOST_IN_LEGEND
    markers = _markers(data, few=few)
    for column, bits in enumerate(data.code_bits):
        _draw_option(axes, data, column, colors(scale(bits)), markers[column], few=few)
    if data.share is not None:
        _draw_rings(axes, data, data.share)
    _arrange(axes, data.layers, width)
    axes.set_title(title, fontsize=10)
    axes.set_ylabel("loss when only this layer is quantized\n(KL to the float network, nats)")
    _explain(figure, axes, data, colors, scale, markers, few=few)
    return figure


def _shares(profile: Profile, plan: Plan) -> NDArray[np.float64]:
    scored = [layer.name for layer in profile.layers]
    planned = [layer.name for layer in plan.layers]
    differing = sorted(set(scored) ^ set(planned))
    if differing:
        where = "profile" if differing[0] in scored else "plan"
        raise InputError(
            f"layer '{differing[0]}' is in the {where} alone, so the two are not of one network; draw the "
            "plan with the profile that it was solved from"
        )
    share = np.zeros((len(scored), len(profile.options)))
    for layer in plan.layers:
        row = scored.index(layer.name)
        known = {score.option for score in profile.layers[row].scores}
        for option, part in layer.option_shares().items():
            if option not in known:
                raise InputError(
                    f"layer '{layer.name}' has option {option} in the plan, for which the profile has no "
                    f"score; it has {', '.join(profile.options)}"
                )
            share[row, profile.options.index(option)] = part
    return share


def _markers(data: SensitivityData, *, few: bool) -> list[str]:
    if few:
        return list(MARKERS[: len(data.options)])
    return [MARKERS[(int(points) - 1) % len(MARKERS)] for points in data.points]


def _draw_option(
    axes: Axes,
    data: SensitivityData,
    column: int,
    color: Color,
    marker: str,
    *,
    few: bool,
) -> None:
    loss = np.maximum(data.loss[:, column], data.floor)
    axes.errorbar(
        np.arange(len(loss)) + _offset(data, column),
        loss,
        yerr=[loss - data.low[:, column], data.high[:, column] - loss],
        color=color,
        marker=marker,
        markersize=5.0 if few else 4.0,
        markeredgewidth=0.0,
        linestyle="none",
        elinewidth=1.0 if few else 0.6,
        label=data.options[column],
        zorder=2.0,
    )


def _offset(data: SensitivityData, column: NDArray[np.intp] | int) -> NDArray[np.float64]:
    """Where an option stands within its layer's place, from left (first) to right (last)."""
    count = len(data.options)
    return SPREAD * ((np.asarray(column) + 0.5) / count - 0.5)


def _draw_rings(axes: Axes, data: SensitivityData, share: NDArray[np.float64]) -> None:
    rows, columns = share.nonzero()
    axes.scatter(
        rows + _offset(data, columns),
        np.maximum(data.loss[rows, columns], data.floor),
        s=SMALLEST_RING_AREA + (WIDEST_RING_AREA - SMALLEST_RING_AREA) * share[rows, columns],
        facecolors="none",
        edgecolors="black",
        linewidths=1.0,
        zorder=3.0,
    )


def _arrange(axes: Axes, names: tuple[str, ...], width: float) -> None:
    label_layers(axes, names, width)
    axes.set_yscale("log")
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    # Bands say which marks belong to a name also where layers stand close.
    for place in range(0, len(names), 2):
        axes.axvspan(place - 0.5, place + 0.5, color="0.955", linewidth=0.0, zorder=0.0)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _explain(
    figure: Figure,
    axes: Axes,
    data: SensitivityData,
    colors: Colormap,
    scale: Normalize,
    markers: list[str],
    *,
    few: bool,
) -> None:
    """A legend, and a colour scale where there are many options."""

    def mark(marker: str, color: Color | str, label: str) -> Line2D:
        return Line2D([], [], linestyle="", marker=marker, color=color, label=label)

    if few:
        entries = [
            mark(marker, colors(scale(bits)), option)
            for option, bits, marker in zip(data.options, data.code_bits, markers, strict=True)
        ]
    else:
        bar = figure.colorbar(ScalarMappable(scale, colors), ax=axes, pad=0.01, aspect=30)
        bar.set_label("bits of the codes per weight (bits x points)")
        kinds = dict(zip(data.points.tolist(), markers, strict=True))
        entries = [
            mark(kinds[points], "0.35", f"{points} point{'s' if points > 1 else ''}")
            for points in sorted(kinds)
        ]
    if data.share is not None:
        mixed = bool(((data.share > 0) & (data.share < 1)).any())
        ring = mark("o", "black", "chosen; the larger,\nthe more channels" if mixed else "chosen")
        ring.set(markerfacecolor="none", markersize=11.0)
        entries.append(ring)
    figure.legend(handles=entries, loc="outside right upper", fontsize=8, frameon=False)
