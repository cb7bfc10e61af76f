"""One TOML file per run, validated as typed data; unknown keys are refused and the nearest valid key is named.

`RunConfig` holds the sections; a section's plug-in table (`dataset`, `network`, `search.strategy`, `learn.objective`,
`learn.optimiser`, `rounds.policy`) is a name and the member's fields, see `repsearch.families`.
"""

from repsearch.config.changing import merged, with_search
from repsearch.config.digests import json_digest, learn_digest, search_digest
from repsearch.config.loading import load_config, parse_config, parse_resolved, read_toml, with_overrides
from repsearch.config.schema import (
    LOGITS,
    LearnConfig,
    LearnerConfig,
    RoundsConfig,
    RunConfig,
    RunSection,
    ScheduleEntry,
    SearchConfig,
    SearcherConfig,
    StoreConfig,
    TlsConfig,
    TrackingConfig,
)

__all__ = [
    "LOGITS",
    "LearnConfig",
    "LearnerConfig",
    "RoundsConfig",
    "RunConfig",
    "RunSection",
    "ScheduleEntry",
    "SearchConfig",
    "SearcherConfig",
    "StoreConfig",
    "TlsConfig",
    "TrackingConfig",
    "json_digest",
    "learn_digest",
    "load_config",
    "merged",
    "parse_config",
    "parse_resolved",
    "read_toml",
    "search_digest",
    "with_overrides",
    "with_search",
]
