"""Digests of the parts of a configuration that determine a result; placement, tracking and the number of rounds are in none."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from repsearch.config.schema import RunConfig

_SEARCH = ("dataset", "network", "search", "store")
_LEARN = (*_SEARCH, "learn")
_ADDED: dict[str, dict[str, Any]] = {
    "dataset": {"fitness": 0},
    "search": {
        "below": "found",
        "step": None,
        "nudge": None,
        "relative": False,
        "archive": 0,
        "precision": "float32",
        "code": {},
        "statistics": "learned",
    },
}
"""Fields that configurations came to have later, with the value that means what was done before: digests know nothing of those."""
_ADDED_TO_STRATEGIES: dict[str, dict[str, Any]] = {
    "evolution": {"step_size": "relative"},
    "evolution_strategy": {"step_size": "relative"},
    "class_code": {"code_seed": None, "frequency": None, "strength": None, "codes_per_class": 1, "latent": None},
}
"""The same of strategies."""
_ADDED_TO_NETWORKS: dict[str, dict[str, Any]] = {"mlp": {"activation": "gelu", "normalise": True, "groups": 1}}
"""The same of networks."""
_ADDED_TO_OBJECTIVES: dict[str, dict[str, Any]] = {"regression": {"groups": 1}}
"""The same of learning objectives."""
_ADDED_TO_RULES: dict[str, dict[str, Any]] = {"forward_gradient": {"mask": False}}
"""The same of learning rules."""
_KEPT = ("keep_checkpoints", "checkpoint_seconds", "snapshots")
"""Fields of `learn` that say what is kept of it, not what is learned."""


def search_digest(config: RunConfig) -> str:
    """Return the digest of what determines the search of a given network: data, network, search and stored precision, and the seed."""
    return _digest(config, _SEARCH)


def learn_digest(config: RunConfig) -> str:
    """Return the digest of what determines learning, search included."""
    return _digest(config, _LEARN)


def json_digest(document: Any) -> str:
    """Return the hex SHA-256 of `document` as canonical JSON."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _digest(config: RunConfig, sections: Iterable[str]) -> str:
    dump = config.model_dump(mode="json")
    parts = {section: dump[section] for section in sections}
    # Where the data lie does not matter: the dataset digest tells which they are.
    parts["dataset"] = {key: value for key, value in parts["dataset"].items() if key not in ("root", "download")}
    parts["store"] = {key: value for key, value in parts["store"].items() if key != "root"}
    if parts["search"]["micro_batch"] != "auto":
        # A budget that chooses nothing changes no result.
        parts["search"] = {key: value for key, value in parts["search"].items() if key != "memory_mb"}
    for section, added in _ADDED.items():
        if section in parts:
            parts[section] = _without(parts[section], added)
    parts["network"] = _without(parts["network"], _ADDED_TO_NETWORKS.get(parts["network"]["name"], {}))
    strategy = parts["search"]["strategy"]
    parts["search"]["strategy"] = _without(strategy, _ADDED_TO_STRATEGIES.get(strategy["name"], {}))
    if "learn" in parts:
        parts["learn"] = {key: value for key, value in parts["learn"].items() if key not in _KEPT}
        objective = parts["learn"]["objective"]
        parts["learn"]["objective"] = _without(objective, _ADDED_TO_OBJECTIVES.get(objective["name"], {}))
        rule = {key: value for key, value in parts["learn"].pop("rule").items() if value is not None}
        rule = _without(rule, _ADDED_TO_RULES.get(rule["name"], {}))
        if rule != {"name": "backprop"}:
            # Before rules were a family, there was backpropagation alone.
            parts["learn"]["rule"] = rule
    return json_digest({"seed": config.run.seed, **parts})


def _without(table: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """Return `table` without the fields in `added` that have the value there."""
    return {key: value for key, value in table.items() if key not in added or value != added[key]}
