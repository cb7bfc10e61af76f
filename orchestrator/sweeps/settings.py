"""The `[sweep]` table, and a sweep that could start: all that can be wrong is found before anything is written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.sweeps.space import Choice, Space, overrides, parse_space, where
from repsearch.config import RunConfig, parse_config, read_toml, with_overrides
from repsearch.errors import ConfigError, RepSearchError
from repsearch.families import describe

if TYPE_CHECKING:
    from repsearch.datasets.base import Data

TABLE = "sweep"
MOST_KEYS = 32
"""Keys that the sampler `sobol` can draw."""


class SweepTable(BaseModel):
    """The table `[sweep]`.

    trials: values to try; with the sampler `grid` at most the number of combinations.
    sampler: `random`; `sobol`, even over the space, however few; `tpe`, drawn where good values were; `grid`, every combination of lists.
    prune: delete targets and networks of a trial once it is measured; its figures and journal stay.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    trials: int = Field(default=8, ge=1)
    sampler: Literal["random", "sobol", "tpe", "grid"] = "tpe"
    prune: bool = False
    space: dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """Values to choose: the configuration they change (as the file's table, without `[sweep]`), how many trials, and from what."""

    table: Mapping[str, Any]
    settings: SweepTable
    space: Space

    def config(self, values: Mapping[str, Any]) -> RunConfig:
        """Return the configuration of a trial; raises `ConfigError`."""
        return parse_config(with_overrides(self.table, ["run.baseline=false", *overrides(values)]))

    @property
    def trials(self) -> int:
        """Number of trials."""
        if self.settings.sampler != "grid":
            return self.settings.trials
        return min(self.settings.trials, math.prod(len(part.ends()) for part in self.space.values()))


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> Sweep:
    """Return the sweep of TOML file `path`, with `a.b=value` overrides applied; raises `ConfigError`."""
    return parse_sweep(with_overrides(read_toml(path), overrides), str(path))


def parse_sweep(table: Mapping[str, Any], source: str = "the configuration") -> Sweep:
    """Return the sweep of a configuration table that has `[sweep]`; raises `ConfigError`."""
    if TABLE not in table:
        raise ConfigError(f"{source}: has no [sweep] table; say what to choose in [sweep.space], see docs/sweeps.md")
    try:
        settings = SweepTable.model_validate(table[TABLE])
    except ValidationError as error:
        raise ConfigError(describe(error, at=TABLE, known=lambda _: list(SweepTable.model_fields))) from None
    sweep = Sweep({key: value for key, value in table.items() if key != TABLE}, settings, parse_space(settings.space))
    ranges = [key for key, part in sweep.space.items() if not isinstance(part, Choice)]
    if settings.sampler == "grid" and ranges:
        raise ConfigError(f'{where(ranges[0])}: a grid has no ranges; list the values, or set sweep.sampler = "tpe"')
    if settings.sampler == "sobol" and len(sweep.space) > MOST_KEYS:
        raise ConfigError(f'sweep.space: has {len(sweep.space)} keys; the sampler "sobol" draws at most {MOST_KEYS}, "random" any number')
    return sweep


def check_sweep(sweep: Sweep) -> RunConfig:
    """Return the configuration that the sweep starts from; raises the error of the first value that a run would refuse.

    Every value is checked with the others as the file has them: each of a list, and both ends of a range.
    """
    from orchestrator.preflight import check_run
    from repsearch.datasets import load_data

    config = sweep.config({})
    data: Data = load_data(config.dataset, seed=config.run.seed)
    check_run(config, data)
    for key, part in sweep.space.items():
        for value in part.ends():
            try:
                check_run(sweep.config({key: value}), data)
            except RepSearchError as error:
                raise type(error)(f"{where(key)}: {value!r} is refused: {error}") from None
    return config
