"""The tables. To add a row, add it here; the next `orchestrator reproduce` makes that row alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from orchestrator.evidence.loop import alternating_strategy, candidate_rows, loop_rows, streamed_code, streamed_gradient, streamed_strategy
from orchestrator.evidence.rows import (
    BASELINE,
    BLURRED_GRADIENT,
    CLASS_CODE,
    EARLY_STOPPING,
    EVOLUTION,
    EVOLUTION_STRATEGY,
    GENERALISED,
    GRADIENT,
    LABEL_SMOOTHING,
    MIXED_CODE,
    NONE,
    Row,
)
from orchestrator.evidence.rules import LOCAL_NOTES, PUBLISHED_NOTES, local_rows, local_scale, published_rows, published_scale
from orchestrator.evidence.scales import DEPTH, Scale
from orchestrator.evidence.signs import SIGN_NOTES, sign_rows, sign_scale
from repsearch.errors import ConfigError
from repsearch.families import nearest


@dataclass(frozen=True)
class EvidenceTable:
    """A table: what it shows, and its rows on a scale, for a number of training images.

    scaled: what the table makes of a scale. notes: for its page.
    """

    title: str
    rows: Callable[[Scale, int], Sequence[Row]]
    scaled: Callable[[Scale], Scale] = lambda scale: scale
    notes: str = ""


def _methods(scale: Scale, images: int) -> list[Row]:
    return [BASELINE, EVOLUTION, EVOLUTION_STRATEGY, NONE, CLASS_CODE, MIXED_CODE, GRADIENT, BLURRED_GRADIENT]


def _combined(scale: Scale, images: int) -> list[Row]:
    searched = [
        replace(
            row,
            name=f"{row.name}, {share:.0%} code",
            method=row.name,
            settings={**row.settings, "search.code": {"mix": share, "blur_passes": [5, 1, 1, 0]}},
        )
        for row in (EVOLUTION, BLURRED_GRADIENT)
        for share in (0.25, 0.5, 0.75)
    ]
    return [BASELINE, CLASS_CODE, EVOLUTION, BLURRED_GRADIENT, *searched]


ALL_BLOCKS, SKIP_FIRST = {"learn.objective.layers": [0, 1, 2]}, {"learn.objective.layers": [1, 2]}


def _augmented(scale: Scale, images: int) -> list[Row]:
    searched = [
        replace(row, name=f"{row.name}, {what}", method=row.name, settings={**row.settings, **blocks}, space={})
        for row in (EVOLUTION, EVOLUTION_STRATEGY, CLASS_CODE)
        for what, blocks in (("all blocks", ALL_BLOCKS), ("skip block 0", SKIP_FIRST))
    ]
    return [row.within("", scale.augmentation) for row in (BASELINE, *searched)]


def _augmented_loop(scale: Scale, images: int) -> list[Row]:
    return [row.within("", scale.augmentation) for row in loop_rows(scale, images)]


NOISES = (0.0, 0.2, 0.4)


def _noisy(scale: Scale, images: int) -> list[Row]:
    made = (streamed_strategy, alternating_strategy, streamed_code, streamed_gradient)
    streamed = [row(scale, images) for row in made]
    methods = (BASELINE, LABEL_SMOOTHING, GENERALISED, EARLY_STOPPING, CLASS_CODE, EVOLUTION, EVOLUTION_STRATEGY, *streamed)
    return [row.within(f"{noise:.0%} wrong", {"dataset.label_noise": noise}) for noise in NOISES for row in methods]


def _ablations(scale: Scale, images: int) -> list[Row]:
    base = replace(EVOLUTION, space={}, method=EVOLUTION.name)

    def one(group: str, name: str, *, fixed: tuple[str, ...] = (), x: str = "", **settings: object) -> Row:
        values = {key.replace("__", "."): value for key, value in settings.items()}
        return replace(base, name=name, group=group, settings={**base.settings, **values}, fixed=fixed, x=x)

    blur = [one("blur", name, search__strategy__blur=name) for name in ("mutation", "candidate", "none")]
    match = [
        one("match", name.replace("_", " "), learn__objective__match=name) for name in ("normalised", "last_activation_dropped", "raw")
    ]
    depth = [one("depth", f"{number} convolutions per block", fixed=(DEPTH,), network__convolutions=number) for number in (2, 4, 6)]
    population = [
        one(
            "population",
            f"population {4 * size}",
            x="evaluations",
            search__strategy__population=4 * size,
            search__strategy__parents=max(2, 2 * size // 3),
            search__strategy__explorers=4 * size - max(2, 2 * size // 3) - 2 * size,
            search__strategy__refiners=2 * size,
        )
        for size in (2, 6, 18)
    ]
    generations = [
        one(
            "generations",
            f"generations {4 * n}, {4 * n}, {4 * n}, {n}",
            x="evaluations",
            search__strategy__generations=[4 * n, 4 * n, 4 * n, n],
        )
        for n in (1, 3, 6, 12)
    ]
    return [*blur, *match, *depth, *population, *generations]


TABLES: dict[str, EvidenceTable] = {
    "table1": EvidenceTable("Methods without augmentation", _methods),
    "table2": EvidenceTable("Methods with augmentation", _augmented),
    "table2b": EvidenceTable("Methods with wrong labels", _noisy),
    "table3": EvidenceTable("Ablations of one-shot evolution", _ablations),
    "loop": EvidenceTable("The loop", loop_rows),
    "combinations": EvidenceTable("Search and class codes in one target", _combined),
    "candidates": EvidenceTable("More candidates in the loop", candidate_rows),
    "loop-augmented": EvidenceTable("The loop with augmentation", _augmented_loop),
    "rules": EvidenceTable("Learning rules as published", published_rows, published_scale, PUBLISHED_NOTES),
    "signs": EvidenceTable("A network without derivatives", sign_rows, sign_scale, SIGN_NOTES),
    "local": EvidenceTable("Blocks that learn by themselves", local_rows, local_scale, LOCAL_NOTES),
}


def find_table(name: str) -> EvidenceTable:
    """Return table `name`; raises `ConfigError` naming those there are."""
    if name not in TABLES:
        raise ConfigError(f"table {name!r}{nearest(name, list(TABLES))}: give {', '.join(TABLES)}")
    return TABLES[name]
