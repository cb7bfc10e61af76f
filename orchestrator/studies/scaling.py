"""Cross-entropy of what search finds against population and against generations, per layer; Vegesna & Dahal 2025, figure 2.

Shapes: N images; K searches of an image; L search layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field

from orchestrator.studies.base import FIRST_IMAGES, Base, Findings, Results, Setting, SettingResult
from orchestrator.studies.figures import COLOURS, MARKERS, grid, label_once, log_values, ticks
from orchestrator.studies.strategies import (
    built,
    evaluations,
    generations_field,
    table_of,
    with_evaluations,
    with_factor,
    with_population,
)
from repsearch.errors import ConfigError

AXES = ("population", "generations")
_SOLVED = float(np.log(2))
"""Cross-entropy below which p(correct) > 0.5."""


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """Population and generations of the first strategy, each times every factor; the others search with as many evaluations.

    images: training images to search, the first ones.
    strategies: strategies in one figure; the configured one if not given.
    factors: factors on the configured population (generations as configured), and on the generations (population as configured).
    fields: fields of strategies other than the configured one, by name.
    """

    images: int = FIRST_IMAGES
    strategies: list[str] = field(default_factory=list)
    factors: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = field(
        default_factory=lambda: [0.125, 0.25, 0.5, 1.0, 2.0]
    )
    fields: dict[str, dict[str, Any]] = field(default_factory=dict)

    def settings(self, base: Base) -> list[Setting]:
        """Return, per strategy, the populations and then the generations, the least first; raises `ConfigError` as `Study` says."""
        return [setting for name in self._names(base) for _, _, setting in self._points(base, name)]

    def analyse(self, results: Results) -> Findings:
        """Return one row per strategy, axis, factor and layer, and the figure of them."""
        found = iter(results.settings)
        rows = [
            row
            for name in self._names(results.base)
            for axis, factor, _ in self._points(results.base, name)
            for row in rows_of(results.base, axis, factor, next(found))
        ]
        return Findings(figures={"scaling": draw(results, rows)}, tables={"scaling": rows})

    def _names(self, base: Base) -> list[str]:
        return list(dict.fromkeys(self.strategies)) or [base.config.search.strategy["name"]]

    def _points(self, base: Base, name: str) -> list[tuple[str, float, Setting]]:
        """Return axis, factor and setting of every point of strategy `name`."""
        first = table_of(base, self._names(base)[0], self.fields.get(self._names(base)[0], {}))
        if not any(key in first for key in ("population", "pairs")):
            raise ConfigError(
                f"study scaling: strategy {first['name']!r} has no population to vary; put one that has first in study.strategies"
            )
        own = table_of(base, name, self.fields.get(name, {}))
        points = []
        for axis in AXES:
            for factor in sorted(set(self.factors)):
                size = max(2, round(population_of(first) * (factor if axis == "population" else 1)))
                table = with_population(first, size)
                table = with_factor(table, factor if axis == "generations" else 1.0, "scaling")
                if name != first["name"]:
                    table = with_evaluations(base, with_population(own, size), evaluations(base, table), "scaling")
                searches = 1 if built(base, table).traits.several else base.searches
                points.append((axis, factor, Setting(name=f"{name}, {factor:g} x {axis}", strategy=table, searches=searches)))
        return points


def population_of(table: Any) -> int:
    """Return the candidates of a generation; of a strategy that has a number per layer, the largest."""
    if "population" in table:
        return int(table["population"])
    pairs = table["pairs"]
    return 2 * int(max(pairs) if isinstance(pairs, list) else pairs) + 1


def rows_of(base: Base, axis: str, factor: float, result: SettingResult) -> list[dict[str, Any]]:
    """Return a row per layer.

    cross_entropy: mean over images and searches, in nats. p10, p90: percentiles over images of an image's mean over its searches.
    sd_searches: standard deviation over searches of the mean over images. solved: share of results with p(correct) > 0.5.
    """
    table = result.setting.strategy
    counts = evaluations(base, table)
    rows = []
    for position, layer in enumerate(base.layers):
        after_NK = result.cross_entropy_after[:, :, position]
        low, high = np.percentile(after_NK.mean(axis=1), (10, 90))
        rows.append(
            {
                "strategy": table["name"],
                "axis": axis,
                "factor": factor,
                "layer": layer,
                "population": population_of(table) if {"population", "pairs"} & set(table) else 1,
                "generations": table[generations_field(table, "scaling")][position],
                "evaluations": counts[position],
                "before": float(result.cross_entropy_before[:, :, position].mean()),
                "cross_entropy": float(after_NK.mean()),
                "p10": float(low),
                "p90": float(high),
                "sd_searches": float(after_NK.mean(axis=0).std(ddof=1)) if after_NK.shape[1] > 1 else float("nan"),
                "solved": float((after_NK < _SOLVED).mean()),
                "images": after_NK.shape[0],
                "searches": after_NK.shape[1],
            }
        )
    return rows


def draw(results: Results, rows: Sequence[dict[str, Any]]) -> Figure:
    """Return cross-entropy against population (above) and against generations (below), a column per layer."""
    names = list(dict.fromkeys(row["strategy"] for row in rows))
    layers = list(results.base.layers)
    figure, panels = grid(2, len(layers), f"Scaling of search: {results.name}, {rows[0]['images']} images")
    for axis, line in zip(AXES, panels, strict=True):
        for layer, axes in zip(layers, line, strict=True):
            here = [row for row in rows if row["axis"] == axis and row["layer"] == layer]
            # Points are at their factors, labelled by what the first strategy has there: at one x all have as many evaluations.
            places = {row["factor"]: float(row[axis]) for row in here if row["strategy"] == names[0]}
            for index, name in enumerate(names):
                _curve(axes, [row for row in here if row["strategy"] == name], index, name)
            axes.set(title=layer, xlabel=axis if len(names) == 1 else f"{axis} of {names[0]}")
            log_values(axes, min(row["cross_entropy"] for row in here), max(row["p90"] for row in here))
            ticks(axes, list(places), list(places.values()))
        line[0].set_ylabel("cross-entropy (nats)")
    label_once(figure, panels[0][0])
    return figure


def _curve(axes: Axes, rows: Sequence[dict[str, Any]], index: int, name: str) -> None:
    x = [row["factor"] for row in rows]
    colour = COLOURS[index % len(COLOURS)]
    axes.fill_between(x, [row["p10"] for row in rows], [row["p90"] for row in rows], color=colour, alpha=0.12, linewidth=0)
    spread = [0.0 if np.isnan(row["sd_searches"]) else row["sd_searches"] for row in rows]
    mean = [row["cross_entropy"] for row in rows]
    axes.errorbar(x, mean, spread, color=colour, marker=MARKERS[index % len(MARKERS)], markersize=4, capsize=2, label=name)
