"""Class codes in targets beside what was found: the field `search.code`, built and checked alike by orchestrator and searcher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from repsearch.config import SearchConfig
from repsearch.errors import ConfigError
from repsearch.families import STRATEGIES
from repsearch.networks.base import Shape


def code_of(search: SearchConfig, shapes: Sequence[Shape]) -> Any:
    """Return the strategy `class_code` that `search.code` describes, None if it is empty; `shapes`: of the search layers.

    Raises `ConfigError` where it does not fit the layers.
    """
    if not search.code:
        return None
    code = STRATEGIES.build({**search.code, "name": "class_code"}, at="search.code")
    try:
        code.check(search.layers, shapes)
    except ConfigError as error:
        raise ConfigError(str(error).replace("search.strategy.", "search.code.")) from None
    return code
