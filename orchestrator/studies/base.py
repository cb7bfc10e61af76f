"""What a study is: settings to search, and findings from their results.

Shapes: N images; K results of an image; L search layers; X a representation's own shape.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from orchestrator.learning import LearnRecord
from orchestrator.searching import SearchRecord
from repsearch.config import RunConfig
from repsearch.errors import ConfigError
from store import Store
from store.files import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Shape = tuple[int, ...]
Table = Mapping[str, Any]
"""A strategy's name and fields, as in the configuration."""
ANALYSIS = "analysis"
"""Folder of figures and tables, relative to the run's."""
FIRST_IMAGES = 200
"""Training images that a study searches where it is not told how many."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """What settings are derived from: the configuration, its search layers by name, with their shapes, and the number of classes."""

    config: RunConfig
    layers: Mapping[str, Shape]
    classes: int

    @property
    def searches(self) -> int:
        """Independent results per image."""
        return self.config.search.searches_per_example


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One search of the study's images: what people call it, the strategy's table, and the results per image."""

    name: str
    strategy: Table
    searches: int


@dataclass(frozen=True, kw_only=True)
class Learning:
    """One network to learn from the results of the first setting: what people call it, and where `learn` differs from the configuration.

    arm: of the networks that are compared as one; number: the network's in it.
    """

    arm: str
    number: int
    learn: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What people call it."""
        return f"{self.arm} {self.number}"


@dataclass(frozen=True)
class LearningResult:
    """A network that was learned, and the configuration that it was learned with."""

    learning: Learning
    config: RunConfig
    record: LearnRecord


@dataclass(frozen=True)
class SettingResult:
    """What a setting found: targets and fitness from the store."""

    setting: Setting
    record: SearchRecord
    store: Store
    layers: Sequence[str]

    @cached_property
    def cross_entropy_before(self) -> NDArray[np.float64]:
        """Cross-entropy of the best of the initial population (N, K, L), in nats."""
        return self._cross_entropy("fitness_before")

    @cached_property
    def cross_entropy_after(self) -> NDArray[np.float64]:
        """Cross-entropy of the results (N, K, L), in nats."""
        return self._cross_entropy("fitness_after")

    def targets(self, layer: str) -> NDArray[np.float32]:
        """Return the results at `layer` (N, K, X), as stored."""
        return self._read(layer, several=self.setting.searches > 1).astype(np.float32)

    def _cross_entropy(self, array: str) -> NDArray[np.float64]:
        return -self._read(array, several=self.setting.searches > 1).astype(np.float64)

    def _read(self, array: str, *, several: bool) -> NDArray[Any]:
        values = np.concatenate([self.store.read(reference, array) for reference in self.record.references()])
        # Without several results per image there is no axis for them.
        return values if several else values[:, None]


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything a study analyses: settings' results in order, and the images they are of.

    learned: networks learned from the first setting's results, in order of `learnings`.
    name: of the study's folder. images_NCHW: uint8. labels_N: classes, as numbers; classes: their names. seed: of the run, for what
    the analysis draws.
    """

    base: Base
    name: str
    settings: Sequence[SettingResult]
    images_NCHW: NDArray[np.uint8]
    labels_N: NDArray[np.int64]
    classes: Sequence[str]
    seed: int
    learned: Sequence[LearningResult] = ()


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Figures and tables by file name without suffix; a table's rows have the same keys, its columns."""

    figures: Mapping[str, Figure]
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)


class Study(Protocol):
    """A member of the study family; its fields are set by `--set study.<field>=<value>`.

    A field `images` is the number of training images to search, the first ones of the (shuffled) training set; without it all are.
    """

    def settings(self, base: Base) -> list[Setting]:
        """Return what is to be searched; raises `ConfigError` where the study does not fit the configuration."""
        ...

    def analyse(self, results: Results) -> Findings:
        """Return figures and tables of the results of `settings`, in the same order."""
        ...


@runtime_checkable
class LearningStudy(Study, Protocol):
    """A study that learns from what it searches; it has no field `images`, because learning takes all of them."""

    def learnings(self, base: Base) -> list[Learning]:
        """Return the networks to learn."""
        ...


def images_of(study: Table, there: int) -> int:
    """Return the number of training images, of those that are `there`, that a study with the fields `study` searches."""
    return int(study.get("images", there))


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table as CSV, numbers to six significant digits; what was not measured is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows([{name: _cell(value) for name, value in row.items()} for row in rows])
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, (float, np.floating)):
        return f"{value:.6g}" if np.isfinite(value) else ""
    return value


def write_findings(folder: Path, findings: Findings) -> None:
    """Write figures as PNG and tables as CSV."""
    # Imported when needed: matplotlib takes half a second.
    from orchestrator.studies.figures import save

    folder.mkdir(exist_ok=True)
    for name, figure in findings.figures.items():
        save(figure, folder / f"{name}.png")
    for name, rows in findings.tables.items():
        replace_file(folder / f"{name}.csv", csv_text(rows).encode())


def several_searches(base: Base, study: str) -> int:
    """Return the searches per image; raises `ConfigError` for fewer than two, of which nothing can be compared."""
    if base.searches < 2:
        raise ConfigError(
            f"study {study}: search.searches_per_example is {base.searches}, and independent searches of an image are compared; "
            "set it to 2 or more"
        )
    return base.searches
