"""Figures of an analysis, from the rows of its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from orchestrator.analysing.tables import TARGETS, Row
from orchestrator.studies.figures import COLOURS, MARKERS, grid, label_once

_NAMED_CLASSES = 30
"""Most classes that an axis names."""


def target_distance(rows: Sequence[Row], title: str) -> Figure:
    """Return the distance to the targets by epoch, a panel per layer; Vegesna & Dahal 2025, figure 5."""
    runs, layers = _runs(rows), _values(rows, "layer")
    figure, [panels] = grid(1, len(layers), f"Cosine distance of block outputs to the searched targets: {title}")
    for layer, axes in zip(layers, panels, strict=True):
        for index, run in enumerate(runs):
            _curve(axes, [row for row in rows if (row["run"], row["layer"]) == (run, layer)], "target_distance", run, index)
        axes.set(title=layer, xlabel="epoch")
        axes.set_ylim(bottom=0)
    panels[0].set_ylabel("1 - cosine")
    label_once(figure, panels[0])
    return figure


def collision_entropy(rows: Sequence[Row], title: str) -> Figure:
    """Return collision entropy within (above) and between classes by epoch, a panel per layer; Vegesna & Dahal 2025, figures 6, 7."""
    runs, layers = _runs(rows), _values(rows, "layer")
    figure, panels = grid(2, len(layers), f"Collision entropy: {title}")
    for key, line in zip(("within", "between"), panels, strict=True):
        for layer, axes in zip(layers, line, strict=True):
            here = [row for row in rows if row["layer"] == layer]
            for index, run in enumerate(runs):
                _curve(axes, [row for row in here if row["run"] == run], key, run, index)
            for row in here:
                if row["run"] == TARGETS:
                    axes.axhline(row[key], color="grey", linestyle="--", label="targets")
            axes.set(title=layer, xlabel="epoch")
        line[0].set_ylabel(f"{key} classes (nats)")
    label_once(figure, panels[0][0])
    return figure


def probes(rows: Sequence[Row], title: str) -> Figure:
    """Return the accuracy of linear probes by layer: of the networks before learning (open marks) and after."""
    figure, [[axes]] = grid(1, 1, f"Linear probes: {title}", width=5.0, height=3.4)
    for index, run in enumerate(_runs(rows)):
        for network, style in (("initial", "--"), ("learned", "-")):
            line = [row for row in rows if (row["run"], row["network"]) == (run, network)]
            mark: dict[str, Any] = {"marker": MARKERS[index % len(MARKERS)], "color": COLOURS[index % len(COLOURS)]}
            face = "white" if network == "initial" else mark["color"]
            places, heights = [row["layer"] for row in line], [100 * row["accuracy"] for row in line]
            axes.plot(places, heights, style, **mark, markerfacecolor=face, label=f"{run}, {network}")
    axes.set(ylabel=f"accuracy on {rows[0]['split']} (%)")
    axes.legend(fontsize="small", frameon=False)
    return figure


def reliability(rows: Sequence[Row], scores: Sequence[Row], title: str) -> Figure:
    """Return accuracy by bin of confidence, a panel per run, with the diagonal of a calibrated classifier."""
    runs = _runs(rows)
    ece = {row["run"]: row["ece"] for row in scores}
    columns = min(4, len(runs))
    figure, panels = grid(-(-len(runs) // columns), columns, f"Reliability: {title}", height=3.0)
    flat = [axes for line in panels for axes in line]
    for axes in flat[len(runs) :]:
        axes.set_visible(False)
    for index, (run, axes) in enumerate(zip(runs, flat, strict=False)):
        bins = [row for row in rows if row["run"] == run and row["images"]]
        edges, heights = [row["above"] for row in bins], [row["accuracy"] for row in bins]
        axes.bar(edges, heights, width=[row["to"] - row["above"] for row in bins], align="edge", color=COLOURS[index % len(COLOURS)])
        axes.plot([0, 1], [0, 1], color="grey", linestyle="--")
        axes.set(title=f"{run}: ECE {ece[run]:.1%}", xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
        axes.title.set_fontsize("medium")
    return figure


def classes(rows: Sequence[Row], title: str) -> Figure:
    """Return the accuracy by class."""
    names = _values(rows, "class")
    figure, [[axes]] = grid(1, 1, f"Accuracy by class: {title}", width=min(12.0, max(5.0, 0.45 * len(names))), height=3.2)
    for index, run in enumerate(_runs(rows)):
        heights = [100 * row["accuracy"] for row in rows if row["run"] == run]
        style: dict[str, Any] = {"marker": MARKERS[index % len(MARKERS)], "color": COLOURS[index % len(COLOURS)]}
        axes.plot(range(len(names)), heights, linestyle="", label=run, alpha=0.8, **style)
    if len(names) <= _NAMED_CLASSES:
        axes.set_xticks(range(len(names)), names, rotation=45 if max(map(len, names)) > 3 else 0)
    axes.set(xlabel="class", ylabel="accuracy (%)")
    label_once(figure, axes)
    return figure


def agreement(rows: Sequence[Row], title: str) -> Figure:
    """Return equal predictions and equal errors of every pair of runs, in percent."""
    models = list(dict.fromkeys([*_values(rows, "run"), *_values(rows, "other")]))
    side = max(2.4, 0.6 * len(models) + 1.2)
    figure, [panels] = grid(1, 2, f"Agreement: {title}", width=side + 0.6, height=side)
    for axes, key in zip(panels, ("equal_predictions", "equal_errors"), strict=True):
        _matrix(axes, models, {(row["run"], row["other"]): row[key] for row in rows})
        axes.set_title(key.replace("_", " ") + " (%)")
    return figure


def _matrix(axes: Axes, models: Sequence[str], values: Mapping[tuple[str, str], float]) -> None:
    table = [[100 * values.get((one, other), values.get((other, one), float("nan"))) for other in models] for one in models]
    axes.imshow(table, cmap="viridis", vmin=0, vmax=100)
    axes.grid(visible=False)
    axes.set_xticks(range(len(models)), models, rotation=90, fontsize="small")
    axes.set_yticks(range(len(models)), models, fontsize="small")
    for i, line in enumerate(table):
        for j, value in enumerate(line):
            if value == value:
                axes.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize="small", color="white" if value < 60 else "black")


def _curve(axes: Axes, rows: Sequence[Row], key: str, run: str, index: int) -> None:
    marker = MARKERS[index % len(MARKERS)] if len(rows) <= 40 else ""
    heights = [row[key] for row in rows]
    axes.plot([row["epoch"] for row in rows], heights, color=COLOURS[index % len(COLOURS)], marker=marker, markersize=4, label=run)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _runs(rows: Sequence[Row]) -> list[str]:
    return [run for run in _values(rows, "run") if run != TARGETS]


def _values(rows: Sequence[Row], key: str) -> list[str]:
    return list(dict.fromkeys(row[key] for row in rows))
