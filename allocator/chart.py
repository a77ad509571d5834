"""What all charts share: colours that survive colour blindness and grey print, layer axes, and saving."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..documents import replace_file

__all__ = ["SERIES", "label_layers", "layer_chart_width", "option_colors", "save_figure", "size_unit"]

SERIES = {"blue": "#0072B2", "orange": "#D55E00", "green": "#009E73", "pink": "#CC79A7", "black": "#000000"}
"""Colours of series that have no order, from the palette of Okabe and Ito."""

DOTS_PER_INCH = 150
INCHES_PER_LAYER = 0.14
LEAST_WIDTH, GREATEST_WIDTH, MARGIN_WIDTH = 7.5, 24.0, 2.0
LABEL_INCHES = 0.13
LABEL_LENGTH = 26


def layer_chart_width(layers: int) -> float:
    """Width in inches of a chart with one place per layer: it grows with the layers, up to 24 inches."""
    return min(max(LEAST_WIDTH, MARGIN_WIDTH + INCHES_PER_LAYER * layers), GREATEST_WIDTH)


def label_layers(axes: Axes, names: Sequence[str], width: float) -> None:
    """Write layer names upright along the x axis at 0, 1, 2, ..., thinned so that they never overlap.

    Parameters
    ----------
    axes : Axes
        Of a figure with one place per layer.
    names : sequence of str
        In network order; what all begin with, up to a dot, is left out.
    width : float
        Width of the figure in inches.
    """
    fitting = max(int((width - MARGIN_WIDTH) / LABEL_INCHES), 1)
    shown = range(0, len(names), -(-len(names) // fitting))
    common = _common_prefix(names)
    labels = [_shortened(names[index][common:]) for index in shown]
    axes.set_xticks(shown, labels, rotation=90, fontsize=7)
    axes.set_xlim(-0.7, len(names) - 0.3)


def option_colors(count: int) -> list[tuple[float, float, float, float]]:
    """Colours for options in the order of their bits: dark for few bits, light for many, also in grey."""
    scale = colormaps["viridis"]
    # The brightest yellows vanish on white paper.
    return [scale(0.9 * index / max(count - 1, 1)) for index in range(count)]


def size_unit(size_bits: float) -> tuple[int, str]:
    """Bits in the unit that suits sizes up to this one, and its name."""
    return (8 * 2**20, "MiB") if size_bits >= 8 * 2**20 else (8 * 2**10, "KiB")


def save_figure(figure: Figure, path: Path) -> tuple[Path, Path]:
    """Write a figure as `path`.png and `path`.svg, each whole or not at all; returns both paths.

    The same figure gives the same bytes on every run: no date, and fixed identifiers.

    Parameters
    ----------
    figure : Figure
        The figure.
    path : Path
        Without suffix.

    Raises
    ------
    InputError
        The folder cannot be written.
    """
    path = Path(path)
    png, svg = path.parent / f"{path.name}.png", path.parent / f"{path.name}.svg"
    with replace_file(png) as temporary:
        figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH)
    with replace_file(svg) as temporary, rc_context({"svg.hashsalt": "apportion"}):
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    return png, svg


def _common_prefix(names: Sequence[str]) -> int:
    """Length of what all names begin with, up to and including a dot."""
    parts = [name.split(".") for name in names]
    shared = 0
    while len({tuple(part[: shared + 1]) for part in parts}) == 1 and shared + 1 < min(map(len, parts)):
        shared += 1
    return sum(len(part) + 1 for part in parts[0][:shared])


def _shortened(name: str) -> str:
    # The end tells layers apart better than the beginning does.
    return name if len(name) <= LABEL_LENGTH else f"…{name[1 - LABEL_LENGTH :]}"
