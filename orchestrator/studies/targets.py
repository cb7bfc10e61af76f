"""What a found target is made of: its cosine to the own representation, who explains its variance, its spectrum, and pictures.

Shapes: N images; K searches of an image; D values of a representation; C, H, W of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from orchestrator.analysis.diversity import cosine_to, relative_size
from orchestrator.analysis.spectra import radial_power
from orchestrator.analysis.variance import Shares, variance_shares
from orchestrator.studies.base import FIRST_IMAGES, Base, Findings, Results, Setting, several_searches
from orchestrator.studies.figures import COLOURS, MARKERS, grid
from orchestrator.studies.strategies import table_of
from repsearch.errors import ConfigError
from repsearch.families import STRATEGIES

PARTS = ("own", "found", "difference")
PICTURES = 4
"""Images in the picture grid."""
_SMALLEST_MAP = 4


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Own representation, found target and their difference, of K = `search.searches_per_example` searches per image.

    images: training images to search, the first ones.
    strategy: strategy that finds the targets; the configured one if not given.
    """

    images: int = FIRST_IMAGES
    strategy: str = ""

    def settings(self, base: Base) -> list[Setting]:
        """Return the own representation and the strategy; raises `ConfigError` as `Study` says."""
        searches = several_searches(base, "targets")
        if self.images <= base.classes:
            raise ConfigError(
                f"study.images: {self.images} images of {base.classes} classes; shares of variance need more images than classes; "
                f"set it to {base.classes + 1} or more"
            )
        table = table_of(base, self.strategy or base.config.search.strategy["name"], {})
        own = Setting(name="own representation", strategy=STRATEGIES.resolve({"name": "none"}), searches=1)
        return [own, Setting(name=table["name"], strategy=table, searches=searches)]

    def analyse(self, results: Results) -> Findings:
        """Return tables of composition and spectrum, their figure, and the picture grid."""
        images = len(results.labels_N)
        composition: list[dict[str, Any]] = []
        spectrum: list[dict[str, Any]] = []
        pictures: list[tuple[str, NDArray[np.float32]]] = []
        chosen = one_of_each(results.labels_N, PICTURES)
        for layer, shape in results.base.layers.items():
            own, found = (result.targets(layer) for result in results.settings)
            composition += composition_rows(layer, own, found, results.labels_N)
            if len(shape) == 3 and min(shape[1:]) >= _SMALLEST_MAP:
                spectrum += spectrum_rows(layer, own, found)
                pictures.append((layer, shown(own, found)[chosen]))
        name = f"{results.name}, {results.settings[1].setting.name}, {images} images"
        figures = {"targets": draw(results.base, composition, spectrum, name)}
        if pictures:
            names = [results.classes[label] for label in results.labels_N[chosen]]
            figures["targets-maps"] = draw_maps(pictures, results.images_NCHW[chosen], names, name)
        tables = {"targets": composition, **({"targets-spectrum": spectrum} if spectrum else {})}
        return Findings(figures=figures, tables=tables)


def composition_rows(
    layer: str, own_N1X: NDArray[np.float32], found_NKX: NDArray[np.float32], labels_N: NDArray[np.int64]
) -> list[dict[str, Any]]:
    """Return a row each for own, found and difference: cosine to own (mean, sd over images and searches), size, shares of variance."""
    own_N1D, found_NKD = (values.reshape(*values.shape[:2], -1) for values in (own_N1X, found_NKX))
    own_ND = own_N1D[:, 0]
    difference_NKD = found_NKD - own_N1D
    rows = []
    for part, values in zip(PARTS, (own_N1D, found_NKD, difference_NKD), strict=True):
        cosine_NK, size_NK = cosine_to(values, own_ND), np.linalg.norm(values, axis=-1) / np.linalg.norm(own_N1D, axis=-1)
        shares = variance_shares(values, labels_N)
        rows.append(
            {
                "layer": layer,
                "part": part,
                "images": values.shape[0],
                "searches": values.shape[1],
                "cosine_to_own": float(cosine_NK.mean()),
                "cosine_to_own_sd": float(cosine_NK.std()),
                "size": float(size_NK.mean()),
                "distance_from_own": float(relative_size(values, own_ND).mean()) if part == "found" else float("nan"),
                "share_class": shares.by_class,
                "share_image": shares.by_image,
                "share_search": shares.by_search,
            }
        )
    return rows


def spectrum_rows(layer: str, own_N1CHW: NDArray[np.float32], found_NKCHW: NDArray[np.float32]) -> list[dict[str, Any]]:
    """Return a row per wave number: mean power per mode of own, found and difference, and the difference's in that of own."""
    own, found, difference = (radial_power(maps) for maps in (own_N1CHW, found_NKCHW, found_NKCHW - own_N1CHW))
    return [
        {"layer": layer, "cycles_per_map": wave, "own": float(a), "found": float(b), "difference": float(c)}
        for wave, (a, b, c) in enumerate(zip(own, found, difference, strict=True))
    ]


def shown(own_N1CHW: NDArray[np.float32], found_NKCHW: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return own, found (first search) and difference (N, 3, H, W) of the channel that varies most over the own maps."""
    channel = int(own_N1CHW[:, 0].var(axis=(0, 2, 3)).argmax())
    own, found = own_N1CHW[:, 0, channel], found_NKCHW[:, 0, channel]
    return np.stack([own, found, found - own], axis=1)


def one_of_each(labels_N: NDArray[np.int64], count: int) -> NDArray[np.intp]:
    """Return the first image of each of the first `count` classes that are there."""
    return np.sort(np.unique(labels_N, return_index=True)[1])[:count]


def draw(base: Base, composition: Sequence[dict[str, Any]], spectrum: Sequence[dict[str, Any]], name: str) -> Figure:
    """Return shares of variance and cosines (first two panels), and a spectrum per layer of maps."""
    maps = list(dict.fromkeys(row["layer"] for row in spectrum))
    figure, [panels] = grid(1, 2 + len(maps), f"What a target is made of: {name}", width=3.6, height=3.4)
    _shares(panels[0], composition)
    _cosines(panels[1], base, composition)
    for axes, layer in zip(panels[2:], maps, strict=True):
        rows = [row for row in spectrum if row["layer"] == layer]
        for index, part in enumerate(PARTS):
            style: dict[str, Any] = {"color": COLOURS[index], "marker": MARKERS[index], "markersize": 4}
            axes.plot([row["cycles_per_map"] for row in rows], [row[part] for row in rows], label=part, **style)
        axes.set(title=f"{layer}: spectrum", xlabel="cycles per map", ylabel="mean power per mode", yscale="log")
        axes.legend(fontsize="small", frameon=False)
    return figure


def _shares(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    places, labels = [], []
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    for index, row in enumerate(rows):
        places.append(index + layers.index(row["layer"]) * 0.7)
        labels.append(f"{row['layer']} {row['part']}")
        left = 0.0
        shares = Shares(by_class=row["share_class"], by_image=row["share_image"], by_search=row["share_search"])
        for colour, what, share in zip(COLOURS, ("class", "image", "neither"), vars(shares).values(), strict=False):
            axes.barh(places[-1], share, left=left, color=colour, label=what if index == 0 else None)
            left += share
    axes.set_yticks(places, labels, fontsize="x-small")
    axes.invert_yaxis()
    axes.set(title="Share of variance", xlim=(0, 1))
    axes.legend(fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=3, frameon=False)


def _cosines(axes: Axes, base: Base, rows: Sequence[dict[str, Any]]) -> None:
    for index, part in enumerate(("found", "difference")):
        here = [row for row in rows if row["part"] == part]
        mean, sd = ([row[key] for row in here] for key in ("cosine_to_own", "cosine_to_own_sd"))
        style: dict[str, Any] = {"color": COLOURS[index + 1], "marker": MARKERS[index + 1]}
        axes.errorbar([row["layer"] for row in here], mean, sd, label=part, linestyle="", capsize=3, **style)
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set(title="Cosine to own representation", xlim=(-0.5, len(base.layers) - 0.5))
    axes.legend(fontsize="small", frameon=False)


def draw_maps(
    pictures: Sequence[tuple[str, NDArray[np.float32]]], images_NCHW: NDArray[np.uint8], names: Sequence[str], name: str
) -> Figure:
    """Return a row per image: the image, then own, found and difference of one channel of each layer, one grey scale per panel triple."""
    figure, panels = grid(len(names), 1 + len(PARTS) * len(pictures), f"Maps: {name}", width=0.95, height=1.05)
    for n, line in enumerate(panels):
        line[0].imshow(images_NCHW[n].transpose(1, 2, 0).squeeze(), cmap="gray")
        line[0].set_ylabel(names[n], fontsize="small")
        for place, (layer, maps_N3HW) in enumerate(pictures):
            # One scale for all three, so that the size of the difference can be seen.
            limit = float(np.abs(maps_N3HW[n]).max())
            for number, part in enumerate(PARTS):
                axes = line[1 + place * len(PARTS) + number]
                axes.imshow(maps_N3HW[n, number], cmap="RdBu_r", vmin=-limit, vmax=limit)
                if n == 0:
                    axes.set_title(f"{layer}\n{part}", fontsize="small")
        for axes in line:
            axes.grid(visible=False)
            axes.set_xticks([])
            axes.set_yticks([])
    return figure
