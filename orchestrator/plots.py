"""Figures of a round and of a run, drawn with matplotlib without a display and without its global state (so from any thread)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from orchestrator.report import is_search_metric, layers_of, search_metric

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe & Ito's palette: told apart with every kind of colour vision."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DPI = 120

Curve = Mapping[int, float]
"""Value by step."""


def run_figure(rounds: Mapping[int, Mapping[str, float]]) -> Figure:
    """Return accuracy and search cross-entropy by round; `rounds` holds the metrics of each round's report."""
    layers = list(dict.fromkeys(layer for metrics in rounds.values() for layer in layers_of(metrics)))
    panels: list[Callable[[Axes], None]] = [lambda axes: _accuracy_by_round(axes, rounds)]
    if layers:
        panels.append(lambda axes: _search_by_round(axes, rounds, layers))
    return _figure(panels, "Run, by round")


def round_figure(round: int, curves: Mapping[str, Curve]) -> Figure:
    """Return a round's learning curve by epoch and its fitness by generation and layer; `curves` by journal key ("learn/loss", ...)."""
    panels: list[Callable[[Axes], None]] = []
    if losses := {key: curve for key, curve in curves.items() if _is_loss(key)}:
        panels.append(lambda axes: _losses(axes, losses))
    if accuracies := {key: curve for key, curve in curves.items() if key.startswith("learn/") and key.endswith("accuracy")}:
        panels.append(lambda axes: _accuracies(axes, accuracies))
    if searches := {key: curve for key, curve in curves.items() if _is_search(key)}:
        panels.append(lambda axes: _fitness(axes, searches))
    return _figure(panels, f"Round {round}")


def _figure(panels: Sequence[Callable[[Axes], None]], title: str) -> Figure:
    figure = Figure(figsize=(4.8 * max(len(panels), 1), 3.8), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    for index, draw in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), index + 1)
        draw(axes)
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize="small", frameon=False)
    return figure


def _accuracy_by_round(axes: Axes, rounds: Mapping[int, Mapping[str, float]]) -> None:
    for index, split in enumerate(("test", "validation")):
        curve = {round: 100 * metrics[f"{split}/accuracy"] for round, metrics in rounds.items() if f"{split}/accuracy" in metrics}
        _line(axes, curve, split, index)
    axes.set(xlabel="round", ylabel="accuracy (%)", title="Accuracy")


def _search_by_round(axes: Axes, rounds: Mapping[int, Mapping[str, float]], layers: Sequence[str]) -> None:
    for index, layer in enumerate(layers):
        for when, style in (("before", "--"), ("after", "-")):
            name = search_metric(layer, when)
            curve = {round: metrics[name] for round, metrics in rounds.items() if name in metrics}
            _line(axes, curve, f"{layer}, {when}", index, style)
    _cross_entropy_axis(axes, [value for metrics in rounds.values() for name, value in metrics.items() if is_search_metric(name)])
    axes.set(xlabel="round", title="Search: cross-entropy of the best candidates")


def _losses(axes: Axes, losses: Mapping[str, Curve]) -> None:
    for index, (key, curve) in enumerate(losses.items()):
        _line(axes, curve, key.removeprefix("learn/").replace("_", " "), index)
    axes.set(xlabel="epoch", ylabel="loss", title="Learning: loss")
    _log_if_positive(axes, [value for curve in losses.values() for value in curve.values()])


def _accuracies(axes: Axes, accuracies: Mapping[str, Curve]) -> None:
    for index, (key, curve) in enumerate(accuracies.items()):
        label = key.removeprefix("learn/").removesuffix("accuracy").strip("_/ ") or "accuracy"
        _line(axes, {step: 100 * value for step, value in curve.items()}, label, index)
    axes.set(xlabel="epoch", ylabel="accuracy (%)", title="Learning: accuracy")


def _fitness(axes: Axes, searches: Mapping[str, Curve]) -> None:
    for index, (key, curve) in enumerate(searches.items()):
        _line(axes, curve, key.split("/")[1], index)
    _cross_entropy_axis(axes, [value for curve in searches.values() for value in curve.values()])
    axes.set(xlabel="generation (0: initial population)", title="Search: cross-entropy of the best candidates")


def _cross_entropy_axis(axes: Axes, values: Sequence[float]) -> None:
    axes.set_ylabel("cross-entropy (nats)")
    _log_if_positive(axes, values)


def _log_if_positive(axes: Axes, values: Sequence[float]) -> None:
    # Losses and cross-entropies fall by orders of magnitude; a linear axis shows only the first fall.
    if values and min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")


def _line(axes: Axes, curve: Curve, label: str, index: int, style: str = "-") -> None:
    steps = sorted(curve)
    marker = MARKERS[index % len(MARKERS)] if len(steps) <= 40 else ""
    colour = COLOURS[index % len(COLOURS)]
    inside = "white" if style == "--" else colour
    axes.plot(steps, [curve[step] for step in steps], style, color=colour, marker=marker, markersize=5, markerfacecolor=inside, label=label)


def _is_search(key: str) -> bool:
    # The curves of a part of the images (`orchestrator.live`) have one name more.
    return key.startswith("search/") and key.endswith("/cross_entropy") and key.count("/") == 2


def _is_loss(key: str) -> bool:
    return key.startswith("learn/") and (key.startswith("learn/loss") or key.endswith("cross_entropy"))
