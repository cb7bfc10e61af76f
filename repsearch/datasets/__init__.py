"""Datasets with train, validation and test splits. Members: see `repsearch.families.DATASETS`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from repsearch.errors import DatasetError
from repsearch.families import DATASETS

if TYPE_CHECKING:
    from repsearch.datasets.base import Data

__all__ = ["cached_data", "load_data"]


def load_data(table: Mapping[str, Any], *, seed: int) -> Data:
    """Return the data of configuration `table`, split by `seed`; raises `ConfigError` or `DatasetError`."""
    spec = DATASETS.build(table, at="dataset")
    try:
        data: Data = spec.load(seed=seed)
    except OSError as error:
        raise DatasetError(f"dataset {table['name']}: {error}; check that the files can be read by this user") from error
    return data


def cached_data(table: Mapping[str, Any], *, seed: int) -> Data:
    """Return `load_data(table, seed=seed)`, kept in the process until other data are asked for."""
    return _cached(json.dumps(table, sort_keys=True), seed)


@lru_cache(maxsize=1)
def _cached(table: str, seed: int) -> Data:
    return load_data(json.loads(table), seed=seed)
