"""Strategy tables of a study: strategies beside the configured one, other populations and generations, equal evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.studies.base import Base, Table
from repsearch.config import LOGITS
from repsearch.errors import ConfigError
from repsearch.families import STRATEGIES

GENERATIONS = ("generations", "steps")
"""Fields that hold a strategy's generations, one value per search layer."""
PARTS = ("parents", "explorers", "refiners")
"""Fields that a population is the sum of, where a strategy has them."""
_SHARED = ("population", "blur_passes", "noise_rows", "stop_probability")
"""Fields that mean the same to every strategy that has them, so the configured ones hold for all."""


def table_of(base: Base, name: str, fields: Mapping[str, Any]) -> Table:
    """Return the table of strategy `name`: the configured one, or the member's defaults with what it shares with that, and `fields`.

    Schedules of other lengths are fitted: a block takes the default of its position, or the last block's; the logits take the last.
    """
    configured = base.config.search.strategy
    if name == configured["name"]:
        return STRATEGIES.resolve({**configured, **fields}, at=f"study.fields.{name}")
    table = STRATEGIES.resolve({"name": name}, at="study.strategies")
    layers = base.config.search.layers
    table = {key: _fitted(value, layers) if isinstance(value, list) else value for key, value in table.items()}
    for key in _SHARED:
        # A default of no blur is a choice: the exact gradient is not smoothed because evolution's noise is.
        if key in table and key in configured and table[key] != [0] * len(layers):
            table[key] = configured[key]
    return STRATEGIES.resolve({**table, **fields}, at=f"study.fields.{name}")


def _fitted(defaults: Sequence[Any], layers: Sequence[int | str]) -> list[Any]:
    last_block = max(0, len(defaults) - 2)
    return [defaults[-1] if layer == LOGITS else defaults[min(position, last_block)] for position, layer in enumerate(layers)]


def built(base: Base, table: Table) -> Any:
    """Return the strategy of `table`; raises `ConfigError` unless it fits the search layers."""
    strategy = STRATEGIES.build(table, at="search.strategy")
    strategy.check(base.config.search.layers, list(base.layers.values()))
    return strategy


def evaluations(base: Base, table: Table) -> list[int]:
    """Return the candidate evaluations of one search of an image, per layer."""
    strategy = built(base, table)
    return [strategy.evaluations(position) for position in range(len(base.layers))]


def generations_field(table: Table, study: str) -> str:
    """Return the field of the generations; raises `ConfigError` for a strategy that evaluates nothing to choose."""
    for name in GENERATIONS:
        if name in table:
            return name
    raise ConfigError(
        f"study {study}: strategy {table['name']!r} evaluates no candidates, so there is nothing to vary or to make equal; "
        "name strategies that search, such as evolution or random_search"
    )


def with_population(table: Table, population: int) -> Table:
    """Return `table` with as many candidates per generation, its parts in the same proportion; as it is if it has no population."""
    if "pairs" in table:
        return {**table, "pairs": max(1, round((population - 1) / 2))}
    if "population" not in table:
        return table
    parts = [name for name in PARTS if name in table]
    if not parts:
        return {**table, "population": population}
    scale = population / table["population"]
    sizes = {parts[0]: max(1, round(table[parts[0]] * scale))}
    for name in parts[1:-1]:
        sizes[name] = min(round(table[name] * scale), population - sum(sizes.values()))
    return {**table, "population": population, **sizes, parts[-1]: population - sum(sizes.values())}


def with_evaluations(base: Base, table: Table, wanted: Sequence[int], study: str) -> Table:
    """Return `table` with the generations that come nearest to `wanted` evaluations per layer."""
    field = generations_field(table, study)
    none, one = (evaluations(base, {**table, field: [count] * len(base.layers)}) for count in (0, 1))
    counts = [max(0, round((goal - start) / (next_ - start))) for goal, start, next_ in zip(wanted, none, one, strict=True)]
    return {**table, field: counts}


def with_factor(table: Table, factor: float, study: str) -> Table:
    """Return `table` with `factor` times the generations, at least 1 where there were any."""
    field = generations_field(table, study)
    return {**table, field: [max(min(1, count), round(count * factor)) for count in table[field]]}
