"""Targets of a round: what is read, and what is refused and named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from learner.targets import expected_shapes, find_targets, read_targets
from repsearch.datasets.base import Data
from repsearch.errors import DaemonError, NumericalError, RepSearchError, StoreError
from repsearch.networks import SearchableNetwork
from store import MemoryStore, Reference
from tests.learner_support import made_up_targets, network_for, tiny_data, write_shards

NAMES = ("block0", "block1", "logits")
BOUNDS = ((0, 20), (20, 41), (41, 48))


@pytest.fixture(scope="module")
def data() -> Data:
    return tiny_data()


@pytest.fixture(scope="module")
def network(data: Data) -> SearchableNetwork:
    return network_for(data)


def test_targets_come_in_the_order_of_the_examples_in_stored_precision(data: Data, network: SearchableNetwork) -> None:
    store, targets = MemoryStore(), made_up_targets(network, data)
    shards = write_shards(store, targets, data, BOUNDS)
    read = read_targets(store, [shards[2], shards[0], shards[1]], NAMES, network, data)
    assert list(read) == list(NAMES)
    for name in NAMES:
        assert read[name].dtype == torch.float16
        assert np.array_equal(read[name].numpy(), targets[name])
        assert tuple(read[name].shape[1:]) == tuple(expected_shapes(network)[name])


def test_bfloat16_targets_are_float32_in_memory(data: Data, network: SearchableNetwork) -> None:
    store = MemoryStore()
    values = made_up_targets(network, data)["block0"].astype(np.float32)
    facts = {"kind": "search", "first": 0, "count": 48, "dataset_digest": data.digest}
    shard = store.write("shard", {"block0": values}, attributes=facts, dtypes={"block0": "bfloat16"})
    read = read_targets(store, [shard], ["block0"], network, data)["block0"]
    assert read.dtype == torch.float32
    assert torch.equal(read, torch.from_numpy(values).bfloat16().float())


def test_no_names_no_reading(data: Data, network: SearchableNetwork) -> None:
    assert read_targets(MemoryStore(), [Reference("not/there", "0")], (), network, data) == {}


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        (((0, 20), (30, 48)), r"examples 20\.\.29 are in no shard \(before rounds/00001/search/00001-a1\)"),
        (((5, 48),), r"examples 0\.\.4 are in no shard"),
        (((0, 30), (20, 48)), r"examples from 20 are in two shards"),
        (((0, 40),), r"cover 40 examples, the round has 48"),
        ((), r"cover 0 examples"),
    ],
)
def test_examples_must_be_covered_once(data: Data, network: SearchableNetwork, bounds: Any, message: str) -> None:
    store = MemoryStore()
    shards = write_shards(store, made_up_targets(network, data), data, bounds)
    with pytest.raises(StoreError, match=message):
        read_targets(store, shards, NAMES, network, data)


@pytest.mark.parametrize(
    ("change", "attributes", "error", "message"),
    [
        (lambda targets: {"block0": targets["block0"]}, {}, StoreError, r"00000-a1: no targets block1, logits; it holds block0"),
        (
            lambda targets: {**targets, "block0": targets["block0"][:, :, :2]},
            {},
            StoreError,
            r"00000-a1: block0 has shape \(20, 8, 2, 3\), expected \(20, 8, 3, 3\)",
        ),
        (lambda targets: targets, {"kind": "network"}, StoreError, r"kind is 'network', not 'search'"),
        (lambda targets: targets, {"dataset_digest": "other"}, DaemonError, r"searched on data of digest other, the learner has"),
    ],
)
def test_targets_that_do_not_fit_are_refused(
    data: Data, network: SearchableNetwork, change: Any, attributes: dict[str, Any], error: type[RepSearchError], message: str
) -> None:
    store = MemoryStore()
    shards = write_shards(store, change(made_up_targets(network, data)), data, BOUNDS, **attributes)
    with pytest.raises(error, match=message):
        read_targets(store, shards, NAMES, network, data)


def test_targets_of_another_searched_network_are_refused(data: Data, network: SearchableNetwork) -> None:
    store = MemoryStore()
    shards = write_shards(store, made_up_targets(network, data), data, BOUNDS, network_digest="found")
    assert len(find_targets(store, shards, NAMES, network, data, searched="found")) == 48
    with pytest.raises(StoreError, match=r"00000-a1: searched on the network of digest found, the round searches wanted"):
        find_targets(store, shards, NAMES, network, data, searched="wanted")


def test_shards_of_several_precisions_are_refused(data: Data, network: SearchableNetwork) -> None:
    store, targets = MemoryStore(), made_up_targets(network, data)
    first = write_shards(store, targets, data, [(0, 20)])
    wide = {name: values.astype(np.float32)[20:] for name, values in targets.items()}
    facts = {"kind": "search", "first": 20, "count": 28, "dataset_digest": data.digest}
    second = store.write("wide", wide, attributes=facts)
    with pytest.raises(StoreError, match="wide: block0 is stored in another precision"):
        find_targets(store, [*first, second], NAMES, network, data)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_target_that_is_not_finite_is_named_by_example(data: Data, network: SearchableNetwork, value: float, dtype: str) -> None:
    store = MemoryStore()
    targets = {name: values.astype(dtype) for name, values in made_up_targets(network, data).items()}
    targets["block1"][23, 0, 0, 0] = value
    facts = {"kind": "search", "first": 0, "count": 48, "dataset_digest": data.digest}
    shard = store.write("shard", targets, attributes=facts, finite=False)
    with pytest.raises(NumericalError, match=r"shard: block1 of example 23 is not finite"):
        read_targets(store, [shard], NAMES, network, data)


def test_a_reference_to_something_else_is_refused(data: Data, network: SearchableNetwork) -> None:
    store = MemoryStore()
    shards = write_shards(store, made_up_targets(network, data), data, BOUNDS)
    with pytest.raises(StoreError, match="00001-a1"):
        read_targets(store, [shards[0], replace(shards[1], digest="0" * 64), shards[2]], NAMES, network, data)
