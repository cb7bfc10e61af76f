"""The space of a sweep: per key of the configuration a range or a list of values.

[sweep.space]
"learn.optimiser.lr" = {low = 1e-3, high = 2e-2, log = true}     a number; an integer if both ends are
"network.convolutions" = [2, 4, 6]                               one of these; a value may be anything, a list or a table too
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from repsearch.errors import ConfigError
from repsearch.families import nearest

if TYPE_CHECKING:
    import optuna

SECTIONS = ("network", "search", "learn", "rounds")
"""What a sweep may choose. Data and seed stay: trials on other images could not be compared."""
_RANGE_KEYS = ("low", "high", "log")


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included; whole numbers if both are; drawn evenly in their logarithm with `log`."""

    low: float
    high: float
    log: bool = False

    def ends(self) -> list[Any]:
        """Values to check before a sweep starts."""
        return [self.low, self.high]

    def suggest(self, trial: optuna.trial.Trial, key: str) -> Any:
        """Return the value of `key` in `trial`."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(key, self.low, self.high, log=self.log)
        return trial.suggest_float(key, self.low, self.high, log=self.log)

    def at(self, share: float) -> float:
        """Return the number at `share`, from 0 to 1, of the way from low to high."""
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        low, high = (self.low - 0.5, self.high + 0.5) if whole else (self.low, self.high)
        value = low * (high / low) ** share if self.log else low + (high - low) * share
        return min(max(round(value), self.low), self.high) if whole else min(max(value, self.low), self.high)


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    values: tuple[Any, ...]

    def ends(self) -> list[Any]:
        """Values to check before a sweep starts: all of them."""
        return list(self.values)

    def texts(self) -> list[str]:
        """The values as JSON: Optuna's choices must be scalars."""
        return [json.dumps(value) for value in self.values]

    def at(self, share: float) -> str:
        """Return the value at `share`, from 0 to 1, of the list, as JSON."""
        return self.texts()[min(int(share * len(self.values)), len(self.values) - 1)]

    def suggest(self, trial: optuna.trial.Trial, key: str) -> Any:
        """Return the value of `key` in `trial`."""
        return json.loads(trial.suggest_categorical(key, self.texts()))


Space = Mapping[str, Range | Choice]


def parse_space(table: Mapping[str, Any]) -> dict[str, Range | Choice]:
    """Return the space of TOML table `[sweep.space]`; keys may be quoted (`"a.b"`) or dotted.

    Raises `ConfigError` with a line per key that is no range and no list of values.
    """
    found, faults = dict[str, Range | Choice](), []
    for key, value in _flat(table).items():
        try:
            found[key] = _parse(key, value)
        except ConfigError as error:
            faults.append(f"{where(key)}: {error}")
    if not found and not faults:
        raise ConfigError('sweep.space: is empty; name what to choose, for example "learn.optimiser.lr" = {low = 1e-3, high = 2e-2}')
    if faults:
        raise ConfigError("\n".join(faults))
    return found


def where(key: str) -> str:
    """Return the place of `key` in the configuration file."""
    return f'sweep.space."{key}"'


def toml_value(value: Any) -> str:
    """Return `value` (JSON's types) as TOML."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {toml_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml_value(inner) for inner in value) + "]"
    return json.dumps(value)


def overrides(values: Mapping[str, Any]) -> list[str]:
    """Return `values` as `a.b=value` overrides."""
    return [f"{key}={toml_value(value)}" for key, value in values.items()]


def _flat(table: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat = dict[str, Any]()
    for key, value in table.items():
        path = f"{above}.{key}" if above else key
        # A table that has none of a range's keys is the beginning of a dotted key.
        if isinstance(value, Mapping) and value and all(isinstance(inner, (Mapping, list)) for inner in value.values()):
            flat |= _flat(value, path)
        else:
            flat[path] = value
    return flat


def _parse(key: str, value: Any) -> Range | Choice:
    section = key.partition(".")[0]
    if section not in SECTIONS:
        raise ConfigError(f"a sweep chooses values of {', '.join(SECTIONS)}, not of {section!r}{nearest(section, list(SECTIONS))}")
    if isinstance(value, list):
        return _choice(value)
    if isinstance(value, Mapping):
        return _range(value)
    raise ConfigError(f"should be a list of values or {{low, high, log}} (given: {value!r})")


def _choice(values: list[Any]) -> Choice:
    if not values:
        raise ConfigError("an empty list; name at least one value")
    twice = [value for value in values if values.count(value) > 1]
    if twice:
        raise ConfigError(f"{twice[0]!r} is given twice")
    return Choice(tuple(values))


def _range(table: Mapping[str, Any]) -> Range:
    for name in table:
        if name not in _RANGE_KEYS:
            raise ConfigError(f"unknown key {name!r}{nearest(name, list(_RANGE_KEYS))}; a range has low, high and perhaps log")
    for name in ("low", "high"):
        value = table.get(name)
        if value is None:
            raise ConfigError(f"{name} is required")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ConfigError(f"{name} should be a finite number (given: {value!r})")
    low, high, log = table["low"], table["high"], table.get("log", False)
    if not isinstance(log, bool):
        raise ConfigError(f"log should be true or false (given: {log!r})")
    if low >= high:
        raise ConfigError(f"low {low} is not below high {high}; exchange them, or set the value in the configuration itself")
    if log and low <= 0:
        raise ConfigError(f"low {low} has no logarithm; raise it above 0 or leave out log")
    return Range(low, high, log)
