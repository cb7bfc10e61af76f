"""What the figures of studies share."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from orchestrator.plots import COLOURS, MARKERS

__all__ = ["COLOURS", "MARKERS", "grid", "label_once", "say", "ticks"]

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


def ticks(axes: Axes, values: list[float]) -> None:
    """Set a logarithmic x axis with a tick at each of `values` and nowhere else."""
    axes.set_xscale("log")
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.xaxis.set_minor_locator(NullLocator())


def say(axes: Axes, text: str) -> None:
    """Write `text` into a panel that has nothing to show, without numbers on its y axis."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="grey")
    axes.set_yticks([])


def label_once(figure: Figure, axes: Axes) -> None:
    """Put one legend below the panels, with the lines of `axes`."""
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) > 1:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(handles)), frameon=False, fontsize="small")
