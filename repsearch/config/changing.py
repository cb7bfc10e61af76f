"""A configuration with some settings of its search changed, as a round may have them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from repsearch.config.loading import parse_config
from repsearch.config.schema import RunConfig, SearchConfig
from repsearch.errors import ConfigError
from repsearch.families import nearest

FIXED = ("network", "calibration_examples")
"""Fields of `search` that make the network of round 0, so that no round can have others."""


def with_search(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """Return `config` with `changes` in its section `search`; `config` itself for none.

    `strategy` among them changes the fields it gives; one of another name takes the strategy's place. Raises `ConfigError` naming the
    field at fault.
    """
    if not changes:
        return config
    return _with_search(config.model_dump_json(), json.dumps(changes, sort_keys=True))


@lru_cache(maxsize=16)
def _with_search(config: str, changes: str) -> RunConfig:
    table, wanted = json.loads(config), json.loads(changes)
    known = [name for name in SearchConfig.model_fields if name not in FIXED]
    for name in wanted:
        if name not in known:
            raise ConfigError(f"search.{name}: not among what a round may change{nearest(name, known)}; it may change {', '.join(known)}")
    table["search"] = merged(table["search"], wanted)
    return parse_config(table)


def merged(search: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return partial or whole tables of `search` with `changes` on top; see `with_search`."""
    result = {**search, **changes}
    if "strategy" in search and "strategy" in changes:
        before, after = (_named(table["strategy"]) for table in (search, changes))
        result["strategy"] = after if after.get("name", before.get("name")) != before.get("name") else {**before, **after}
    return result


def _named(strategy: Any) -> dict[str, Any]:
    # `strategy = "none"` is short for `strategy = {name = "none"}`, as everywhere.
    return {"name": strategy} if isinstance(strategy, str) else dict(strategy)
