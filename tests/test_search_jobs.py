"""The searcher's jobs from request to committed shard, and several results per image from there to the learner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learner.batches import TrainingSet
from learner.checkpoints import NoCheckpoints
from learner.fit import fit
from learner.objectives.regression import Regression
from learner.targets import draw_results, read_targets
from repsearch.config import RunConfig
from repsearch.datasets import cached_data
from repsearch.errors import ConfigError
from repsearch.networks import to_arrays
from repsearch.rpc.v1 import jobs_pb2
from searcher.jobs import run_job
from store import Reference, ZarrStore, layout
from store.parameters import write_parameters
from tests.learner_support import Recorder, digits_config, network_for, plan_for, request_for

STRATEGY = {
    "name": "evolution_strategy",
    "pairs": 3,
    "generations": [2, 2, 1],
    "sigma": [0.3] * 3,
    "step": [0.3] * 3,
    "blur_passes": [1, 0, 0],
}
CODE = {"name": "class_code", "blur_passes": [1, 0, 0]}
TEXTS: list[str] = []


class Watcher(Recorder):
    """A recorder that keeps the texts of progress."""

    def progress(self, done: int, total: int, *, unit: str, text: str = "", search: jobs_pb2.SearchState | None = None) -> None:
        TEXTS.append(text)


def config_of(strategy: dict[str, Any] = STRATEGY, **search: Any) -> RunConfig:
    return digits_config(search={"strategy": strategy, **search})


def searched(root: Path, config: RunConfig, *, first: int = 0, count: int = 200) -> Reference:
    """Search a shard on an untrained network, as the orchestrator asks for it."""
    data, store = cached_data(config.dataset, seed=config.run.seed), ZarrStore(root / "run")
    network = write_parameters(store, layout.initial_network_path(), to_arrays(network_for(data)), {"kind": "network"})
    spec = jobs_pb2.SearchSpec(
        round=0,
        shard=0,
        attempt=1,
        first=first,
        count=count,
        network=jobs_pb2.Reference(path=network.path, digest=network.digest),
        output_path=layout.shard_path(0, 0, 1),
    )
    result = run_job(request_for(config, dataset_digest=data.digest, search=spec), Watcher(store_root=root))
    return Reference(result.path, result.digest)


def test_a_shard_holds_targets_fitness_and_the_figures_of_its_search(tmp_path: Path) -> None:
    TEXTS.clear()
    shard = searched(tmp_path, config_of())
    store = ZarrStore(tmp_path / "run")
    manifest = store.manifest(shard)
    assert store.read(shard, "block0").shape == (200, 8, 3, 3)
    assert store.read(shard, "fitness_after").shape == (200, 3)
    assert manifest.attributes["evaluations"] == 200 * (15 + 15 + 8)
    after = store.read(shard, "fitness_after")
    for position, name in enumerate(("block0", "block1", "logits")):
        assert manifest.attributes["solved"][name] == pytest.approx(float((after[:, position] > np.log(0.5)).mean()))
    assert "solved" in TEXTS[-1] and "evaluations/s" in TEXTS[-1]


def test_several_results_are_an_axis_and_the_learner_reads_the_fittest_or_all(tmp_path: Path) -> None:
    config = config_of(searches_per_example=3)
    shard, store = searched(tmp_path, config), ZarrStore(tmp_path / "run")
    data = cached_data(config.dataset, seed=config.run.seed)
    network, names = network_for(data), ("block0", "logits")
    stored, fitness = store.read(shard, "block0"), store.read(shard, "fitness_after")
    assert stored.shape == (200, 3, 8, 3, 3)
    assert fitness.shape == (200, 3, 3)
    everything = read_targets(store, [shard], names, network, data, searches=3, pick="random")
    assert everything["block0"].shape == (200, 3, 8, 3, 3)
    best = read_targets(store, [shard], names, network, data, searches=3)
    rows, fittest = np.arange(200), fitness.mean(axis=2).argmax(axis=1)
    assert np.array_equal(best["block0"].numpy(), stored[rows, fittest])
    assert best["logits"].shape == (200, 10)
    second = read_targets(store, [shard], names, network, data, searches=3, pick=1)
    assert np.array_equal(second["block0"].numpy(), stored[:, 1])


def test_every_epoch_draws_one_result_per_image_for_all_layers() -> None:
    draws = torch.stack([draw_results(3000, 4, seed=1, round=0, epoch=epoch) for epoch in (1, 2, 1)])
    assert torch.equal(draws[0], draws[2])
    assert 0.2 < (draws[0] == draws[1]).float().mean() < 0.3
    assert torch.bincount(draws[0]).min() > 650
    data = cached_data(digits_config().dataset, seed=0)
    targets = {"block0": torch.arange(200 * 4).view(200, 4, 1).float(), "block1": torch.arange(200 * 4).view(200, 4, 1).float()}
    plan = plan_for()
    drawn = TrainingSet.on("cpu", data.train, targets, results=4).of_epoch(seed=plan.seed, round=plan.round, epoch=2)
    index = torch.tensor([7, 0, 199])
    found = drawn.targets_at(index)
    expected = index * 4 + draw_results(200, 4, seed=plan.seed, round=plan.round, epoch=2)[index]
    assert found["block0"][:, 0].tolist() == found["block1"][:, 0].tolist() == expected.tolist()


def test_learning_from_drawn_results_repeats_to_the_bit(tmp_path: Path) -> None:
    config = config_of(CODE | {"mix": 0.5}, searches_per_example=2)
    shard, store = searched(tmp_path, config), ZarrStore(tmp_path / "run")
    data = cached_data(config.dataset, seed=config.run.seed)

    def learned() -> list[np.ndarray]:
        network = network_for(data)
        targets = read_targets(store, [shard], ("block0", "block1", "logits"), network, data, searches=2, pick="random")
        training = TrainingSet.on("cpu", data.train, targets, results=2)
        fit(network, training, data.validation, plan_for(epochs=2, objective=Regression()), NoCheckpoints(), Recorder())
        return list(to_arrays(network).values())

    assert all(np.array_equal(one, other) for one, other in zip(learned(), learned(), strict=True))


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"strategy": {**STRATEGY, "sigma": [0.3]}}, r"search\.strategy\.sigma: 1 values \[0\.3\] for 3 search layers"),
        ({"strategy": {**STRATEGY, "blur_passes": [2, 0, 0]}}, r"layer 0 has a map of 3x3; set at most 1"),
        ({"layers": [0, 7, "logits"]}, r"search\.layers: layer 7 is not there: the network has blocks 0 to 1"),
        ({"strategy": {"name": "quality_diversity", "dimensions": 4, "cells": 9}}, r"9 cells along 4 dimensions are 6561"),
    ],
)
def test_a_search_that_does_not_fit_is_refused_before_it_starts(search: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        config = config_of(**{"strategy": STRATEGY, **search})
        run_job(request_for(config, check=jobs_pb2.CheckSpec()), Recorder(store_root=tmp_path))
