"""The resolved configuration is complete and reads back as itself; digests cover what determines a result and nothing else."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repsearch.config import RunConfig, learn_digest, parse_config, search_digest, with_overrides
from repsearch.config.loading import PLUGINS
from repsearch.families import Family
from tests.test_config_validation import table

positive = st.floats(1e-6, 1e6)
counts = st.integers(1, 2**40)

datasets = st.one_of(
    st.fixed_dictionaries({"name": st.just("digits")}, optional={"train": st.none() | counts, "validation": counts, "test": counts}),
    st.fixed_dictionaries(
        {"name": st.sampled_from(["mnist", "fashion_mnist", "cifar10", "cifar100"])},
        optional={"root": st.text(), "download": st.booleans(), "train": st.none() | counts, "test": st.none() | counts},
    ),
    st.fixed_dictionaries(
        {"name": st.just("image_folder"), "root": st.text(), "size": st.integers(2, 512)}, optional={"channels": st.sampled_from([1, 3])}
    ),
)
networks = st.fixed_dictionaries(
    {"name": st.just("convnet")},
    optional={"width": counts, "blocks": st.integers(1, 9), "convolutions": st.sampled_from([2, 4, 6]), "head_scale": positive},
)
learns = st.fixed_dictionaries(
    {"objective": st.just("regression") | st.just({"name": "cross_entropy"}), "optimiser": st.sampled_from(["sgd", "adamw"])},
    optional={
        "epochs": counts,
        "batch_size": st.integers(2, 10**6),
        "warmup": st.floats(0.01, 0.99),
        "schedule": st.sampled_from(["one_cycle", "cosine", "constant"]),
        "clip_norm": st.none() | st.floats(1e-6, 1e6),
        "patience": st.none() | counts,
        "precision": st.sampled_from(["float32", "bfloat16"]),
        "compile": st.booleans(),
        "memory_mb": st.none() | st.floats(0.1, 1e6),
        "keep": st.sampled_from(["last", "best"]),
        "flip": st.booleans(),
    },
)
searches = st.fixed_dictionaries(
    {"strategy": st.just(table()["search"]["strategy"])},
    optional={
        "layers": st.lists(st.integers(0, 9) | st.just("logits"), min_size=1, unique=True),
        "start": st.sampled_from(["fresh", "network"]),
        "network": st.fixed_dictionaries({}, optional={"convolutions": st.sampled_from([2, 4])}),
        "input_noise": st.floats(0, 10) | st.integers(0, 10),
    },
)
configs = st.fixed_dictionaries(
    {"search": searches},
    optional={
        "run": st.fixed_dictionaries({}, optional={"seed": st.integers(0, 2**31 - 1), "root": st.text(), "baseline": st.booleans()}),
        "dataset": datasets,
        "network": networks,
        "learn": learns,
        "rounds": st.fixed_dictionaries({}, optional={"policy": st.sampled_from(["one_shot", "closed_loop"]), "count": counts}),
        "searcher": st.fixed_dictionaries({}, optional={"addresses": st.lists(st.text()), "count": counts}),
        "store": st.fixed_dictionaries(
            {}, optional={"dtype": st.sampled_from(["float16", "bfloat16", "float32"]), "chunk_mb": st.floats(0.1, 64)}
        ),
    },
)


@given(configs)
@settings(deadline=None, max_examples=60)
def test_the_resolved_configuration_reads_back_as_itself(given: dict[str, Any]) -> None:
    untouched = copy.deepcopy(given)
    config = parse_config(given)
    assert given == untouched
    for dump in (config.model_dump(), config.model_dump(mode="json"), json.loads(config.model_dump_json())):
        again = parse_config(dump)
        assert again == config
        assert again.model_dump_json() == config.model_dump_json()
    assert search_digest(parse_config(config.model_dump())) == search_digest(config)


@pytest.mark.parametrize(("path", "family"), PLUGINS)
def test_every_default_of_a_plug_in_is_filled_in(path: str, family: Family) -> None:
    config: Any = parse_config(table()).model_dump()
    for key in path.split("."):
        config = config[key]
    assert list(config) == ["name", *(field.name for field in dataclasses.fields(family.member(config["name"])))]


def changed(*overrides: str) -> RunConfig:
    return parse_config(with_overrides(table(), overrides))


@pytest.mark.parametrize(
    "override",
    [
        "rounds.count=9",
        "searcher.count=2",
        "searcher.threads=4",
        "learner.device=cuda",
        "tracking.enabled=false",
        "run.root=elsewhere",
        "learn.snapshots=1",
    ],
)
def test_placement_tracking_and_the_number_of_rounds_are_in_no_digest(override: str) -> None:
    assert search_digest(changed(override)) == search_digest(changed())
    assert learn_digest(changed(override)) == learn_digest(changed())


@pytest.mark.parametrize(
    "override", ["run.seed=1", "dataset.train=50", "network.width=32", "search.strategy.boost=[1, 1, 1, 1]", "store.dtype=float32"]
)
def test_what_determines_the_search_is_in_both_digests(override: str) -> None:
    assert search_digest(changed(override)) != search_digest(changed())
    assert learn_digest(changed(override)) != learn_digest(changed())


@pytest.mark.parametrize(
    ("overrides", "search", "learn"),
    [
        ([], "8439fdb707ce", "c4886d8922f2"),
        (["search.strategy.name=class_code"], "7192d4b3173e", "433b8c254d82"),
    ],
)
def test_configurations_from_before_a_field_keep_their_digests(overrides: list[str], search: str, learn: str) -> None:
    config = parse_config(with_overrides({}, overrides))
    assert (search_digest(config)[:12], learn_digest(config)[:12]) == (search, learn)


def test_a_network_from_before_a_field_keeps_its_digest() -> None:
    mlp = {"dataset": {"name": "digits"}, "network": {"name": "mlp", "widths": [12, 8]}}
    assert search_digest(parse_config(mlp))[:12] == "2f5d6ad80e22"
    assert search_digest(parse_config(with_overrides(mlp, ["network.activation=relu"])))[:12] != "2f5d6ad80e22"


def test_learning_is_in_the_digest_of_learning_alone() -> None:
    assert search_digest(changed("learn.epochs=3")) == search_digest(changed())
    assert learn_digest(changed("learn.epochs=3")) != learn_digest(changed())


def test_where_the_data_lie_is_in_no_digest() -> None:
    here, there = changed("dataset=mnist", "dataset.root=here"), changed("dataset=mnist", "dataset.root=there", "dataset.download=true")
    assert search_digest(here) == search_digest(there)
