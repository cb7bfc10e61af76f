"""Every fault of a configuration is one line that names the path, the value, and for an unknown key the nearest valid one."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest

from repsearch.config import load_config, parse_config
from repsearch.errors import ConfigError

SCHEDULES = {"generations": [3, 3, 3, 3], "strength": [0.5] * 4, "boost": [2.0] * 4, "blur_passes": [1, 1, 1, 0]}


def table(path: str = "", value: Any = None) -> dict[str, Any]:
    """A valid table, with `value` set at dotted `path`."""
    result: dict[str, Any] = {
        "dataset": {"name": "digits"},
        "network": {"name": "convnet"},
        "search": {"strategy": {"name": "evolution", **copy.deepcopy(SCHEDULES)}},
        "learn": {"objective": {"name": "regression"}, "optimiser": {"name": "sgd"}},
        "rounds": {"policy": {"name": "closed_loop"}},
    }
    *parents, last = path.split(".")
    inner = result
    for key in parents:
        inner = inner.setdefault(key, {})
    if path:
        inner[last] = value
    return result


def fault(path: str, value: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(table(path, value))
    return str(caught.value)


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("serach", "search"),
        ("run.sede", "seed"),
        ("dataset.trian", "train"),
        ("network.widht", "width"),
        ("search.layer", "layers"),
        ("search.strategy.poplation", "population"),
        ("search.network.convolution", "convolutions"),
        ("learn.epoch", "epochs"),
        ("learn.objective.head_wieght", "head_weight"),
        ("learn.optimiser.momentun", "momentum"),
        ("rounds.cuont", "count"),
        ("searcher.adresses", "addresses"),
        ("learner.adress", "address"),
        ("store.dtpye", "dtype"),
        ("tracking.url", "uri"),
    ],
)
def test_a_misspelt_key_is_refused_and_the_nearest_suggested(path: str, nearest: str) -> None:
    message = fault(path, 1)
    assert message.startswith(f"{path}: unknown key {path.split('.')[-1]!r}; did you mean {nearest!r}?; valid keys: ")


def test_an_unknown_key_far_from_any_lists_the_valid_ones() -> None:
    assert fault("learner.zzz", 1) == "learner.zzz: unknown key 'zzz'; valid keys: address, device, threads, stall_seconds, wait_seconds"


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("dataset.name", "mnist"),
        ("network.name", "convnet"),
        ("search.strategy.name", "evolution"),
        ("learn.objective.name", "regression"),
        ("learn.optimiser.name", "adamw"),
        ("rounds.policy.name", "one_shot"),
    ],
)
def test_a_misspelt_member_is_refused_and_the_nearest_suggested(path: str, nearest: str) -> None:
    misspelt = nearest[:-1] + "x"
    message = fault(path, misspelt)
    assert message.startswith(f"{path.removesuffix('.name')}: unknown name {misspelt!r}; did you mean {nearest!r}?; known: ")


@pytest.mark.parametrize("path", ["dataset", "network", "search.strategy", "learn.objective", "learn.optimiser", "rounds.policy"])
def test_a_plug_in_needs_a_name(path: str) -> None:
    assert fault(path, {}).startswith(f"{path}: needs a `name`, one of ")


@pytest.mark.parametrize("path", ["run", "search", "learn", "dataset", "network", "search.strategy"])
def test_a_value_where_a_table_belongs(path: str) -> None:
    assert fault(path, 3).endswith(f"{path}: should be a table (given: 3)")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("run.seed", -1, "should be greater than or equal to 0"),
        ("run.seed", 2**31, "should be less than 2147483648"),
        ("rounds.count", 0, "should be greater than or equal to 1"),
        ("learn.warmup", 1.0, "should be less than 1"),
        ("learn.batch_size", 1, "should be greater than or equal to 2"),
        ("search.input_noise", -0.1, "should be greater than or equal to 0"),
        ("search.layers", [-1], "should be greater than or equal to 0"),
        ("search.layers", [], "should have at least 1 item"),
        ("search.layers", ["logit"], "should be 'logits'"),
        ("search.layers", [0, 1, 0], "layer 0 is given twice"),
        ("search.start", "warm", "should be 'fresh' or 'network'"),
        ("searcher.shard_examples", 0, "should be greater than or equal to 1"),
        ("store.chunk_mb", 65, "should be less than or equal to 64"),
        ("store.dtype", "float64", "should be 'float16', 'bfloat16' or 'float32'"),
        ("network.width", 0, "should be greater than or equal to 1"),
        ("network.convolutions", 3, "should be a multiple of 2"),
        ("dataset.test", 0, "should be greater than or equal to 1"),
        ("search.strategy.population", 1, "should be greater than or equal to 2"),
        ("search.strategy.population", 4, "population 4 is smaller than parents + 1 = 5"),
        ("search.network.convolutions", 3, "should be a multiple of 2"),
    ],
)
def test_a_value_out_of_range(path: str, value: Any, message: str) -> None:
    found = fault(path, value)
    assert message in found and found.startswith(path.rsplit(".", 1)[0])
    assert "\n" not in found


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "path", ["search.input_noise", "learn.warmup", "network.head_scale", "learn.optimiser.lr", "search.strategy.strength"]
)
def test_a_number_that_is_not_finite(path: str, number: float) -> None:
    value = [0.5, 0.5, 0.5, number] if path.endswith("strength") else number
    assert "should be a finite number" in fault(path, value)


def test_not_a_number_is_no_whole_number_and_not_nothing() -> None:
    assert fault("dataset.train", math.nan).startswith("dataset.train: should be a valid integer (given: nan)")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("run.seed", "3"),
        ("run.seed", 3.0),
        ("run.seed", True),
        ("run.root", 3),
        ("run.baseline", 1),
        ("learn.flip", "yes"),
        ("learn.warmup", "0.1"),
        ("searcher.addresses", "127.0.0.1:7001"),
        ("network.width", "16"),
        ("network.width", True),
        ("dataset.train", 10.5),
        ("learn.optimiser.lr", "fast"),
        ("search.strategy.generations", 3),
        ("search.strategy.generations", [3, 3, 3, "3"]),
        ("search.network", []),
    ],
)
def test_a_value_of_the_wrong_type(path: str, value: Any) -> None:
    message = fault(path, value)
    assert message.startswith(path) and "(given: " in message


def test_every_fault_is_a_line_of_its_own() -> None:
    wrong = table("learn.epochs", 0)
    wrong["run"] = {"sede": 1}
    with pytest.raises(ConfigError) as caught:
        parse_config(wrong)
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["run.sede", "learn.epochs"]


def test_faults_of_several_plug_ins_come_together() -> None:
    wrong = table("network.widht", 1)
    wrong["dataset"]["train"] = 0
    with pytest.raises(ConfigError) as caught:
        parse_config(wrong)
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["dataset.train", "network.widht"]


def test_a_missing_field_without_default_is_named() -> None:
    assert fault("dataset", {"name": "image_folder"}) == "dataset.root: is required\ndataset.size: is required"


def test_a_configuration_error_ends_with_exit_code_2() -> None:
    assert ConfigError.exit_code == 2


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: no such file; name a configuration"):
        load_config(tmp_path / "nowhere.toml")


def test_a_file_that_is_not_toml(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text("[run\nseed = 1")
    with pytest.raises(ConfigError, match=r"x\.toml: not valid TOML: .*line 1"):
        load_config(path)


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.toml"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"x\.toml: cannot be read"):
        load_config(path)
