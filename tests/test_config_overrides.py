"""`--set a.b=value` in every form, and the short form of a plug-in table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from repsearch.config import load_config, parse_config, with_overrides
from repsearch.errors import ConfigError
from tests.test_config_validation import SCHEDULES, table


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("a.b=3", 3),
        ("a.b = 3 ", 3),
        ("a.b=0.5", 0.5),
        ("a.b=1e-3", 0.001),
        ("a.b=true", True),
        ('a.b="3"', "3"),
        ("a.b='x y'", "x y"),
        ("a.b=x y", "x y"),
        ("a.b=", ""),
        ("a.b=127.0.0.1:7001", "127.0.0.1:7001"),
        ("a.b=sqlite:///x=y.db", "sqlite:///x=y.db"),
        ('a.b=[0, 1, "logits"]', [0, 1, "logits"]),
        ('a.b={name = "x"}', {"name": "x"}),
        ("a.b=[0, ", "[0,"),
    ],
)
def test_a_value_is_toml_or_else_a_string(override: str, value: Any) -> None:
    assert with_overrides({"a": {"c": 1}}, [override]) == {"a": {"c": 1, "b": value}}


@pytest.mark.parametrize("override", ["a.b", "=3", ".=3", "a.=3", "a..b=3", ""])
def test_a_form_that_is_not_a_path_and_a_value(override: str) -> None:
    with pytest.raises(ConfigError, match=r"expected a\.b=value, for example rounds\.count=5"):
        with_overrides({}, [override])


def test_a_path_through_a_value() -> None:
    with pytest.raises(ConfigError, match=r"--set 'run\.seed\.x=3': 'seed' is not a table"):
        with_overrides({"run": {"seed": 1}}, ["run.seed.x=3"])


def test_later_overrides_win_and_the_table_given_stays_as_it_is() -> None:
    given = {"run": {"seed": 1}}
    assert with_overrides(given, ["run.seed=2", "run.seed=3"]) == {"run": {"seed": 3}}
    assert given == {"run": {"seed": 1}}


@pytest.mark.parametrize("override", ["dataset.name=mnist", "dataset=mnist", 'dataset={name="mnist"}'])
def test_naming_another_member_drops_the_fields_of_the_one_before(override: str) -> None:
    given = {"dataset": {"name": "digits", "test": 3}}
    assert with_overrides(given, [override, "dataset.train=5"]) == {"dataset": {"name": "mnist", "train": 5}}


def test_naming_the_same_member_keeps_its_fields() -> None:
    given = {"dataset": {"name": "digits", "test": 3}}
    assert with_overrides(given, ["dataset.name=digits"]) == given


def test_a_field_of_a_plug_in_given_by_its_short_form() -> None:
    assert with_overrides({"rounds": {"policy": "one_shot"}, "dataset": "digits"}, ["dataset.train=5"]) == {
        "rounds": {"policy": {"name": "one_shot"}},
        "dataset": {"name": "digits", "train": 5},
    }


@pytest.mark.parametrize("path", ["dataset", "network", "learn.objective", "learn.optimiser", "rounds.policy"])
def test_the_short_form_is_the_table_with_a_name(path: str) -> None:
    names = {
        "dataset": "digits",
        "network": "convnet",
        "learn.objective": "cross_entropy",
        "learn.optimiser": "sgd",
        "rounds.policy": "one_shot",
    }
    assert parse_config(table(path, names[path])) == parse_config(table(path, {"name": names[path]}))


def test_an_override_is_validated_like_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    schedules = "\n".join(f"{key} = {value}" for key, value in SCHEDULES.items())
    path.write_text(f'[rounds]\npolicy = "one_shot"\n[search.strategy]\nname = "evolution"\n{schedules}\n')
    config = load_config(path, ["rounds.count=1", "run.root=/tmp/some runs"])
    assert (config.rounds.policy["name"], config.rounds.count, config.run.root) == ("one_shot", 1, "/tmp/some runs")
    with pytest.raises(ConfigError, match=r"rounds\.cuont: unknown key 'cuont'; did you mean 'count'\?"):
        load_config(path, ["rounds.cuont=1"])
    with pytest.raises(ConfigError, match=r"rounds\.count: should be a valid integer \(given: 'many'\)"):
        load_config(path, ["rounds.count=many"])


def test_a_field_of_a_plug_in_that_the_file_leaves_out_is_one_of_the_default_member() -> None:
    config = parse_config(with_overrides({}, ["learn.optimiser.lr=0.5", "search.strategy.parents=2", "search.strategy.refiners=14"]))
    assert (config.learn.optimiser["name"], config.learn.optimiser["lr"]) == ("adamw", 0.5)
    assert (config.search.strategy["name"], config.search.strategy["parents"]) == ("evolution", 2)
