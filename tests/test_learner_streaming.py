"""Targets larger than memory: every example once, in an order from the seed, within the limit, verified, and the same bits after a stop."""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learner.batches import Batch
from learner.checkpoints import StoreCheckpoints
from learner.fit import fit
from learner.memory import MB, buffer_examples, check_memory, demand_of, fits
from learner.objectives.regression import Regression
from learner.streaming import StreamedSet, open_batches
from learner.targets import CommittedTargets, draw_results, find_targets
from repsearch.config import LearnConfig
from repsearch.datasets.base import Data
from repsearch.errors import ConfigError, NumericalError, StoreError
from repsearch.networks import SearchableNetwork, to_arrays
from repsearch.serving import JobCancelled
from store import MemoryStore, Store, ZarrStore
from tests.learner_support import Recorder, digits_config, network_for, plan_for, tiny_data, write_shards

NAMES = ("block0", "block1", "logits")
SEED = {"seed": 3, "round": 1}


def numbered(network: SearchableNetwork, data: Data, *, searches: int = 1) -> dict[str, np.ndarray]:
    """Return targets whose every value is the number of their example, plus a thousandth per result."""
    several = (searches,) if searches > 1 else ()
    values = np.arange(len(data.train), dtype=np.float32).reshape(-1, *(1 for _ in several)) + 0.25 * np.arange(searches).reshape(several)
    shapes = {"block0": network.layer_shape(0), "block1": network.layer_shape(1), "logits": network.layer_shape(2)}
    arrays = {
        name: np.broadcast_to(values.reshape(*values.shape, *(1 for _ in shape)), (*values.shape, *shape)) for name, shape in shapes.items()
    }
    return {name: np.ascontiguousarray(array).astype(np.float16) for name, array in arrays.items()}


def committed(
    store: Store, data: Data, *, bounds: Any = None, searches: int = 1, pick: Any = "best", arrays: Any = None, width: int = 8
) -> CommittedTargets:
    """Write numbered targets, or `arrays`, in shards of 64 examples, and find them."""
    network = network_for(data, width=width)
    count = len(data.train)
    bounds = bounds or [(first, min(first + 64, count)) for first in range(0, count, 64)]
    shards = write_shards(store, arrays or numbered(network, data, searches=searches), data, bounds)
    return find_targets(store, shards, NAMES, network, data, searches=searches, pick=pick)


def epoch_of(source: StreamedSet, epoch: int, **learn: Any) -> list[Batch]:
    return list(source.epoch(LearnConfig(**{"batch_size": 16, **learn}), **SEED, epoch=epoch))


def examples_of(batches: list[Batch]) -> list[list[int]]:
    """Return the examples of each batch, after checking that all their targets carry the same number."""
    for batch in batches:
        for values in batch.targets.values():
            assert torch.equal(values.flatten(1).amin(1), batch.targets["logits"][:, 0])
            assert torch.equal(values.flatten(1).amax(1), batch.targets["logits"][:, 0])
    return [batch.targets["logits"][:, 0].int().tolist() for batch in batches]


@pytest.fixture(scope="module")
def data() -> Data:
    return tiny_data(train=320)


@pytest.mark.parametrize(("buffer", "fixed"), [(16, False), (50, False), (100, False), (320, False), (50, True), (100, True), (320, True)])
def test_every_example_comes_once_per_epoch_with_its_own_targets(data: Data, buffer: int, fixed: bool) -> None:
    with StreamedSet("cpu", data.train, committed(MemoryStore(chunk_mb=0.005), data), buffer) as source:
        epochs = [epoch_of(source, epoch, fixed_batches=fixed) for epoch in (1, 2, 1)]
    drawn = [examples_of(epoch) for epoch in epochs]
    for batches, epoch in zip(drawn, epochs, strict=True):
        assert [len(batch) for batch in batches] == [16] * 20
        assert sorted(number for batch in batches for number in batch) == list(range(320))
        for numbers, batch in zip(batches, epoch, strict=True):
            assert torch.equal(batch.images, data.train.images[numbers])
            assert torch.equal(batch.labels, data.train.labels[numbers])
    assert drawn[0] == drawn[2] != drawn[1]
    assert (sorted(drawn[0]) == sorted(drawn[1])) is fixed


def test_a_remainder_smaller_than_a_batch_is_left_out(data: Data) -> None:
    with StreamedSet("cpu", data.train, committed(MemoryStore(), data), 64) as source:
        drawn = examples_of(epoch_of(source, 1, batch_size=60))
    assert [len(batch) for batch in drawn] == [60] * 5
    assert len({number for batch in drawn for number in batch}) == 300


def test_a_batch_mixes_examples_of_several_pieces(data: Data) -> None:
    with StreamedSet("cpu", data.train, committed(MemoryStore(chunk_mb=0.005), data), 160) as source:
        drawn = examples_of(epoch_of(source, 1))
    # Pieces of the order of 16 neighbours: a batch from one piece would span less.
    assert min(max(batch) - min(batch) for batch in drawn) > 32


def test_never_more_than_the_limit_is_in_memory(tmp_path: Path) -> None:
    data, limit_mb = tiny_data(train=5000), 3.0
    targets = committed(ZarrStore(tmp_path, chunk_mb=0.2), data, bounds=[(0, 3000), (3000, 5000)], width=64)
    assert len(targets) * sum(map(targets.result_bytes, NAMES)) > 2 * limit_mb * MB
    learn = LearnConfig(batch_size=100, memory_mb=limit_mb)
    targets.read(targets.shards[0], "logits", slice(0, 1))  # what Zarr keeps for itself is no target
    tracemalloc.start()
    with open_batches("cpu", data.train, targets, learn) as source:
        assert isinstance(source, StreamedSet)
        seen = sum(len(batch.labels) for batch in source.epoch(learn, **SEED, epoch=1))
        peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == 5000
    # The limit is used, too: most of it is buffers.
    assert limit_mb * MB / 2 < peak < limit_mb * MB


def test_targets_that_fit_under_the_limit_are_learned_as_without_one(data: Data) -> None:
    targets = committed(MemoryStore(), data)
    learned = []
    for memory_mb in (None, 1.0):
        learn = LearnConfig(batch_size=16, memory_mb=memory_mb)
        with open_batches("cpu", data.train, targets, learn) as source:
            learned.append([batch.targets["block0"] for batch in source.epoch(learn, **SEED, epoch=1)])
    assert all(torch.equal(one, other) for one, other in zip(*learned, strict=True))


def test_the_least_limit_that_is_named_suffices(data: Data) -> None:
    demand = demand_of(committed(MemoryStore(chunk_mb=0.005), data))
    with pytest.raises(ConfigError, match=r"learn\.memory_mb: 0\.01 MB do not hold .* 64 examples") as refused:
        buffer_examples(demand, 0.01, 64)
    found = re.search(r"set it to ([\d.]+) or more", str(refused.value))
    assert found
    assert buffer_examples(demand, float(found[1]), 64) >= 64
    assert fits(demand, demand.whole / MB)
    assert not fits(demand, demand.whole / MB - 0.001)


def test_a_limit_that_is_too_little_is_refused_before_targets_are_searched() -> None:
    shapes = [(8, 3, 3), (8, 1, 1), (10,)]
    config = digits_config(learn={"memory_mb": 0.02}, store={"chunk_mb": 0.001})
    with pytest.raises(ConfigError, match=r"learn\.memory_mb: 0\.02 MB"):
        check_memory(config, shapes, 5000)
    check_memory(digits_config(learn={"memory_mb": 5.0}), shapes, 5000)
    check_memory(digits_config(), shapes, 5000)


@pytest.mark.parametrize("pick", ["best", "random", 2])
def test_of_several_results_the_one_asked_for_is_read(data: Data, pick: Any) -> None:
    store, network = MemoryStore(), network_for(data)
    fitness = np.random.default_rng(1).normal(size=(320, 3, 2)).astype(np.float32)
    arrays = numbered(network, data, searches=3) | {"fitness_after": fitness}
    targets = committed(store, data, searches=3, pick=pick, arrays=arrays)
    expected = {
        "best": torch.from_numpy(fitness.mean(2).argmax(1)),
        "random": draw_results(320, 3, **SEED, epoch=2),
        2: torch.full((320,), 2),
    }[pick]
    with StreamedSet("cpu", data.train, targets, 80) as source:
        batches = epoch_of(source, 2)
    for batch in batches:
        values = batch.targets["logits"][:, 0].double()
        assert torch.equal((values % 1) * 4, expected[values.long()].double())


def test_a_chunk_that_was_altered_is_named(data: Data, tmp_path: Path) -> None:
    targets = committed(ZarrStore(tmp_path, chunk_mb=0.005), data)
    chunk = next((tmp_path / targets.shards[2].reference.path / "block0").glob("c.1*"))
    content = bytearray(chunk.read_bytes())
    content[7] ^= 1
    chunk.write_bytes(bytes(content))
    with StreamedSet("cpu", data.train, targets, 64) as source, pytest.raises(StoreError, match=r"00002-a1/block0/c\.1"):
        epoch_of(source, 1)


def test_a_target_that_is_not_finite_is_named_by_example(data: Data) -> None:
    store, arrays = MemoryStore(), numbered(network_for(data), data)
    arrays["block1"][201] = np.nan
    facts = {"kind": "search", "first": 0, "count": 320, "dataset_digest": data.digest}
    shard = store.write("shard", arrays, attributes=facts, finite=False)
    targets = find_targets(store, [shard], NAMES, network_for(data), data)
    with StreamedSet("cpu", data.train, targets, 64) as source, pytest.raises(NumericalError, match="block1 of example 201 is not finite"):
        epoch_of(source, 1)


@pytest.mark.parametrize("stop_after", [1, 2])
def test_a_streamed_fit_cancelled_and_resumed_gives_the_same_bits(data: Data, stop_after: int) -> None:
    targets = committed(MemoryStore(chunk_mb=0.005), data)
    plan = plan_for(epochs=3, objective=Regression(), pad_crop=1, batch_size=32)
    checks = 10 * stop_after + 5

    def stop() -> None:
        nonlocal checks
        checks -= 1
        if checks == 0:
            raise JobCancelled("stop")

    def fitted(store: MemoryStore, attempt: int, recorder: Recorder) -> SearchableNetwork:
        network = network_for(data)
        kept = StoreCheckpoints(store, "checkpoints/00001", round=1, attempt=attempt, digest="d", keep=1, attributes={})
        with StreamedSet("cpu", data.train, targets, 96) as source:
            fit(network, source, data.validation, plan, kept, recorder)
        return network

    whole, store = to_arrays(fitted(MemoryStore(), 1, Recorder())), MemoryStore()
    with pytest.raises(JobCancelled):
        fitted(store, 1, Recorder(on_check=stop))
    resumed = to_arrays(fitted(store, 2, Recorder()))
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)
