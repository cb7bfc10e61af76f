"""Datasets with train, validation and test splits. Members: see `repsearch.families.DATASETS`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from repsearch.errors import DatasetError
from repsearch.families import DATASETS

if TYPE_CHECKING:
    from repsearch.datasets.base import Data

__all__ = ["load_data"]


def load_data(table: Mapping[str, Any], *, seed: int) -> Data:
    """Return the data of configuration `table`, split by `seed`; raises `ConfigError` or `DatasetError`."""
    spec = DATASETS.build(table, at="dataset")
    try:
        data: Data = spec.load(seed=seed)
    except OSError as error:
        raise DatasetError(f"dataset {table['name']}: {error}; check that the files can be read by this user") from error
    return data
