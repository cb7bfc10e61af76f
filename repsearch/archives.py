"""What an archive of elites (`search.archive`) asks of a configuration, and how long it makes rounds stay."""

from __future__ import annotations

from typing import Any

from repsearch.config import RunConfig, SearchConfig
from repsearch.errors import ConfigError
from repsearch.windows import Windows


def elites_name(layer: str) -> str:
    """Return the name of the array of a shard that has the elites of search layer `layer`."""
    return f"{layer}.elites"


def check_archive(search: SearchConfig, strategy: Any) -> None:
    """Raise `ConfigError` unless `strategy` has as many elites of an example as `search.archive` asks for."""
    most, name = strategy.traits.elites, search.strategy["name"]
    if search.archive and not most:
        raise ConfigError(
            f"search.archive: {search.archive}, but the strategy {name} has no elites to carry to the next round; "
            "set search.archive = 0, or choose the strategy evolution"
        )
    if search.archive > most:
        raise ConfigError(
            f"search.archive: {search.archive} elites, but the strategy {name} keeps {most} parents; "
            f"set it to {most} or less, or raise search.strategy.parents"
        )


def archive_reach(config: RunConfig, windows: Windows) -> int:
    """Return how many rounds back the archive of a round may be: its window comes early in one pass and late in the next; 0 without."""
    changed = any(entry.search.get("archive") for entry in config.rounds.schedule)
    return 2 * len(windows) - 1 if config.search.archive or changed else 0
