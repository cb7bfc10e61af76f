"""From a TOML file and `--set` overrides to a `RunConfig` with every default filled in."""

from __future__ import annotations

import textwrap
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from repsearch.config.schema import RunConfig
from repsearch.errors import ConfigError
from repsearch.families import DATASETS, NETWORKS, OBJECTIVES, OPTIMISERS, POLICIES, RULES, STRATEGIES, Family, describe

PLUGINS: tuple[tuple[str, Family], ...] = (
    ("dataset", DATASETS),
    ("network", NETWORKS),
    ("search.strategy", STRATEGIES),
    ("learn.objective", OBJECTIVES),
    ("learn.rule", RULES),
    ("learn.optimiser", OPTIMISERS),
    ("rounds.policy", POLICIES),
)
"""Paths of the plug-in tables and the family of each."""

_PLUGIN_KEYS = [path.split(".") for path, _ in PLUGINS]


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the configuration in TOML file `path`, with `a.b=value` overrides applied in order.

    A table `[sweep]`, which says what `orchestrator sweep` chooses, is no part of the configuration.
    Raises `ConfigError` for a file that is missing or not TOML, and for every fault `parse_config` finds.
    """
    table = read_toml(path)
    table.pop("sweep", None)
    return parse_config(with_overrides(table, overrides))


def read_toml(path: Path) -> dict[str, Any]:
    """Return the table in TOML file `path`; raises `ConfigError` for one that is missing or not TOML."""
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; name a configuration, such as configs/digits.toml") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def with_overrides(table: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of `table` with each `a.b=value` set; a value is TOML, or a plain string where it is not TOML."""
    result = _named(table)
    for override in overrides:
        path, separator, text = override.partition("=")
        keys = path.strip().split(".")
        if not separator or not all(keys):
            raise ConfigError(f"--set {override!r}: expected a.b=value, for example rounds.count=5")
        inner = result
        for depth, key in enumerate(keys[:-1], start=1):
            inner = inner.setdefault(key, _new_table(keys[:depth]))
            if not isinstance(inner, dict):
                raise ConfigError(f"--set {override!r}: {key!r} is not a table")
        value = _value(text.strip())
        # Naming another member of a family drops the fields of the one before, which would not fit it.
        if keys[-1] == "name" and keys[:-1] in _PLUGIN_KEYS and inner.get("name") not in (None, value):
            inner.clear()
        inner[keys[-1]] = value
        result = _named(result)
    return result


def parse_config(table: Mapping[str, Any]) -> RunConfig:
    """Return the validated configuration, plug-in tables resolved to all their fields.

    Raises `ConfigError` with one line per fault, each naming the path, the value and, for an unknown key, the nearest valid one.
    """
    try:
        config = RunConfig.model_validate(_named(table))
    except ValidationError as error:
        raise ConfigError(describe(error, at="", known=known_keys)) from None
    # Not in JSON mode, which turns a NaN in a plug-in's table into null before the plug-in can refuse it.
    dump = config.model_dump()
    faults = []
    for path, family in PLUGINS:
        *parents, last = path.split(".")
        section = dump
        for key in parents:
            section = section[key]
        try:
            section[last] = family.resolve(section[last], at=path)
        except ConfigError as error:
            faults.append(str(error))
    if not faults:
        faults = _faults_of_search_network(dump) + _faults_of_search_code(dump["search"]["code"])
    if faults:
        raise ConfigError("\n".join(faults))
    return RunConfig.model_validate(dump)


def parse_resolved(text: str) -> RunConfig:
    """Return the configuration that `model_dump_json` wrote as `text`, its sections checked again; `ConfigError` names what is wrong."""
    try:
        return RunConfig.model_validate_json(text)
    except ValidationError as error:
        # What came by a message may be anything, and as long.
        raise ConfigError(textwrap.shorten(describe(error, at="", known=known_keys), 2000)) from None


def _faults_of_search_network(dump: Mapping[str, Any]) -> list[str]:
    try:
        NETWORKS.build({**dump["network"], **dump["search"]["network"]}, at="search.network")
    except ConfigError as error:
        return [str(error)]
    return []


def _faults_of_search_code(code: Mapping[str, Any]) -> list[str]:
    if not code:
        return []
    if code.get("name", "class_code") != "class_code":
        return [f"search.code.name: {code['name']!r}; the code is that of strategy 'class_code': leave the name out"]
    try:
        share = STRATEGIES.build({**code, "name": "class_code"}, at="search.code").mix
    except ConfigError as error:
        return [str(error)]
    if "mix" not in code or not 0 < share < 1:
        said = f"is {share:g}, and" if "mix" in code else "is not given;"
        return [f"search.code.mix: {said} it is the share of the code in a target beside what was found; give a number between 0 and 1"]
    return []


def known_keys(path: tuple[int | str, ...]) -> list[str]:
    """Return the valid keys of the section at `path`, in the order of the schema."""
    model: type[BaseModel] = RunConfig
    for key in path:
        if isinstance(key, int):
            # A number in a list of tables, of which `model` is one already.
            continue
        field = model.model_fields.get(key)
        inner = [] if field is None else [field.annotation, *get_args(field.annotation)]
        tables = [table for table in inner if isinstance(table, type) and issubclass(table, BaseModel)]
        if not tables:
            return []
        model = tables[0]
    return list(model.model_fields)


def _named(table: Mapping[str, Any]) -> dict[str, Any]:
    # `policy = "one_shot"` is short for `policy = {name = "one_shot"}`, in every family.
    result = _copy(table)
    for path, _ in PLUGINS:
        *parents, last = path.split(".")
        section: Any = result
        for key in parents:
            section = section.get(key, {}) if isinstance(section, dict) else {}
        if isinstance(section, dict) and isinstance(section.get(last), str):
            section[last] = {"name": section[last]}
    return result


def _new_table(keys: Sequence[str]) -> dict[str, Any]:
    """Return what an override writes into where the file has no such table: nothing, or for a plug-in the default member's name."""
    if list(keys) not in _PLUGIN_KEYS:
        return {}
    section: Any = RunConfig()
    for key in keys:
        section = getattr(section, key)
    return {"name": section["name"]}


def _copy(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in table.items()}


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
