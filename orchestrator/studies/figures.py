"""What the figures of studies share."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from PIL import Image

from orchestrator.plots import COLOURS, MARKERS
from store.files import replace_file

__all__ = ["COLOURS", "MARKERS", "grid", "label_once", "log_values", "save", "say", "ticks"]

DPI = 100


def grid(rows: int, columns: int, title: str, *, width: float = 3.1, height: float = 2.7) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure of `rows` x `columns` panels, drawn without a display."""
    figure = Figure(figsize=(width * columns + 0.4, height * rows + 0.7), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat:
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, [list(row) for row in panels]


def ticks(axes: Axes, places: Sequence[float], labels: Sequence[float] | None = None) -> None:
    """Set a logarithmic x axis with a tick at each of `places` and nowhere else, labelled by `labels` if they differ."""
    axes.set_xscale("log")
    axes.set_xticks(places, [f"{value:g}" for value in labels or places])
    axes.xaxis.set_minor_locator(NullLocator())


def log_values(axes: Axes, least: float, most: float) -> None:
    """Set a logarithmic y axis if `least` .. `most` is positive and wide, with plain numbers as labels."""
    if least <= 0 or most < 4 * least:
        return
    axes.set_yscale("log")
    # A band may reach down to zero, which has no place on the axis.
    axes.set_ylim(least / 4, most * 1.5)
    # Over few decades powers of ten alone would leave an axis with one label or none.
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if most < 100 * least else (1.0,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def say(axes: Axes, text: str) -> None:
    """Write `text` into a panel that has nothing to show, without numbers on its y axis."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="grey")
    axes.set_yticks([])


def label_once(figure: Figure, axes: Axes) -> None:
    """Put one legend below the panels, with the lines of `axes`."""
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) > 1:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(handles)), frameon=False, fontsize="small")


def save(figure: Figure, path: Path) -> None:
    """Write `figure` as a PNG of 256 colours, a third of the size of true colour; the file appears whole or not at all."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn)
    Image.open(drawn).convert("RGB").quantize(256).save(small, format="PNG", optimize=True)
    replace_file(path, small.getvalue())
