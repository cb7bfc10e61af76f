"""Effective number of distinct results against the number of independent searches, per layer; Vegesna & Dahal 2025, figure 3.

Only results with p(correct) > 0.5 count. Beside the strategies stands noise of the same size: for each counted result of the first
strategy a vector of its length and its cosine to the own representation, in a random direction otherwise.

Shapes: N images; K searches of an image; D values of a representation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from orchestrator.analysis.diversity import cosines, effective_number, noise_like, relative_size
from orchestrator.studies.base import FIRST_IMAGES, Base, Findings, Results, Setting, several_searches
from orchestrator.studies.figures import COLOURS, MARKERS, grid, label_once, say, ticks
from orchestrator.studies.strategies import built, evaluations, table_of, with_evaluations
from repsearch.families import STRATEGIES

BESIDE = ("quality_diversity", "gradient")
NOISE = "noise of the same size"
_SOLVED = float(np.log(2))
"""Cross-entropy below which p(correct) > 0.5."""


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """N_eff of the results of K = `search.searches_per_example` searches per image, and of the first 1, 2, 4, ... of them.

    images: training images to search, the first ones.
    strategies: strategies to compare; if not given, the configured one, quality_diversity and gradient.
    fields: fields of strategies other than the configured one, by name.
    """

    images: int = FIRST_IMAGES
    strategies: list[str] = field(default_factory=list)
    fields: dict[str, dict[str, Any]] = field(default_factory=dict)

    def settings(self, base: Base) -> list[Setting]:
        """Return the own representation, then a setting per strategy; raises `ConfigError` as `Study` says.

        A strategy of one search with several results has as many evaluations as the K searches of the first strategy together. One
        that steps along exact gradients keeps its own schedule.
        """
        searches = several_searches(base, "diversity")
        names = list(dict.fromkeys(self.strategies or (base.config.search.strategy["name"], *BESIDE)))
        tables = [table_of(base, name, self.fields.get(name, {})) for name in names]
        wanted = evaluations(base, tables[0])
        for place, table in enumerate(tables[1:], start=1):
            traits = built(base, table).traits
            if traits.chooses and not traits.needs_gradient:
                goal = [count * (searches if traits.several else 1) for count in wanted]
                tables[place] = with_evaluations(base, table, goal, "diversity")
        own = Setting(name="own representation", strategy=STRATEGIES.resolve({"name": "none"}), searches=1)
        return [own, *(Setting(name=table["name"], strategy=table, searches=searches) for table in tables)]

    def analyse(self, results: Results) -> Findings:
        """Return one row per strategy, layer and number of searches, and the figure of them."""
        rows = [row for position, layer in enumerate(results.base.layers) for row in rows_of(results, position, layer)]
        return Findings(figures={"diversity": draw(results, rows)}, tables={"diversity": rows})


def rows_of(results: Results, position: int, layer: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of one layer.

    images: those with a counted result. kept: mean number of counted results per image, of all `images_searched`.
    n_eff: mean and standard deviation over images. n_eff_difference: the same of the results less the own representation.
    size: mean length of a counted difference, in lengths of the own representation.
    """
    own, *found = results.settings
    own_ND = own.targets(layer)[:, 0].reshape(len(results.labels_N), -1)
    for place, result in enumerate(found):
        values_NKD = result.targets(layer).reshape(*result.cross_entropy_after.shape[:2], -1)
        kept_NK = result.cross_entropy_after[:, :, position] < _SOLVED
        yield from _counted(result.setting.name, layer, values_NKD, own_ND, kept_NK)
        if place == 0:
            noise_NKD = noise_like(values_NKD, own_ND, np.random.default_rng([results.seed, position]))
            yield from _counted(NOISE, layer, noise_NKD, own_ND, kept_NK)


def _counted(
    name: str, layer: str, values_NKD: NDArray[np.float32], own_ND: NDArray[np.float32], kept_NK: NDArray[np.bool_]
) -> Iterator[dict[str, Any]]:
    cosines_NKK = cosines(values_NKD)
    difference_NKK = cosines(values_NKD - own_ND[:, None])
    size_NK = relative_size(values_NKD, own_ND)
    for count in counts(kept_NK.shape[1]):
        first_NK = kept_NK & (np.arange(kept_NK.shape[1]) < count)
        some_N = first_NK.any(axis=1)
        n_eff, n_eff_difference = (effective_number(values[some_N], first_NK[some_N]) for values in (cosines_NKK, difference_NKK))
        yield {
            "strategy": name,
            "layer": layer,
            "searches": count,
            "images_searched": len(kept_NK),
            "images": int(some_N.sum()),
            "kept": float(first_NK.sum(axis=1).mean()),
            "n_eff": _mean(n_eff),
            "n_eff_sd": _deviation(n_eff),
            "n_eff_difference": _mean(n_eff_difference),
            "n_eff_difference_sd": _deviation(n_eff_difference),
            "size": _mean(size_NK[first_NK]),
        }


def counts(searches: int) -> list[int]:
    """Return 1, 2, 4, ... and `searches` itself."""
    return sorted({*(1 << power for power in range(searches.bit_length()) if 1 << power <= searches), searches})


def _mean(values: NDArray[np.float64]) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def _deviation(values: NDArray[np.float64]) -> float:
    return float(np.nanstd(values)) if np.isfinite(values).any() else float("nan")


def draw(results: Results, rows: Sequence[dict[str, Any]]) -> Figure:
    """Return N_eff of results (above) and of their differences from the own representation (below), a column per layer."""
    layers = list(results.base.layers)
    title = f"Distinct results with p(correct) > 0.5: {results.name}, {rows[0]['images_searched']} images"
    figure, panels = grid(2, len(layers), title)
    names = list(dict.fromkeys(row["strategy"] for row in rows))
    for key, label, line in zip(("n_eff", "n_eff_difference"), ("results", "differences from own"), panels, strict=True):
        for layer, axes in zip(layers, line, strict=True):
            here = [row for row in rows if row["layer"] == layer]
            searches = sorted({row["searches"] for row in here})
            for index, name in enumerate(names):
                curve = [row for row in here if row["strategy"] == name]
                x, y, sd = ([row[column] for row in curve] for column in ("searches", key, f"{key}_sd"))
                style: dict[str, Any] = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}
                axes.errorbar(x, y, sd, label=name, markersize=4, capsize=2, linestyle="--" if name == NOISE else "-", **style)
            axes.set(title=layer, xlabel="independent searches K")
            ticks(axes, [float(count) for count in searches])
            if not any(row["images"] for row in here):
                say(axes, "no result with p(correct) > 0.5")
        line[0].set_ylabel(f"N_eff of {label}")
    label_once(figure, panels[0][0])
    return figure
