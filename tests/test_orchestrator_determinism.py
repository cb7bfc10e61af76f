"""A run's results do not depend on where, in what pieces or in which order they were computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from store import layout, open_store
from tests.orchestrator_runs import complete, learned, write_config
from tests.serving_processes import daemon


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one local searcher, shards of 64 images."""
    folder = tmp_path_factory.mktemp("reference")
    complete("run", str(write_config(folder)), "--name", "one", folder=folder)
    return folder / "runs" / "one"


def targets(run: Path, round: int, name: str) -> np.ndarray:
    """Targets of a round as searched, all shards joined."""
    store = open_store(run)
    shards = store.read_document(layout.round_document(round))["shards"]
    return np.concatenate([store.read(shard["path"], name) for shard in shards])


def same(reference: Path, other: Path) -> bool:
    names = ("block0", "block1", "logits", "fitness_before", "fitness_after")
    arrays = all(np.array_equal(targets(reference, round, name), targets(other, round, name)) for round in (0, 1) for name in names)
    return arrays and learned(reference) == learned(other)


@pytest.mark.fault(31)
def test_two_searcher_daemons_and_other_shards_give_the_same_bits(reference: Path, tmp_path: Path) -> None:
    """The form of two hosts: daemons at addresses, one store root; shards that do not fit the tiles."""
    runs = tmp_path / "runs"
    runs.mkdir()
    with (
        daemon(runs, module="searcher") as one,
        daemon(runs, module="searcher") as two,
        daemon(runs, module="learner", service="learner") as learner,
    ):
        addresses = f'searcher.addresses=["{one.address}", "{two.address}"]'
        settings = [addresses, f"learner.address={learner.address}", "searcher.shard_examples=23"]
        arguments = [argument for setting in settings for argument in ("--set", setting)]
        complete("run", str(write_config(tmp_path)), "--name", "two", *arguments, folder=tmp_path)
    assert same(reference, runs / "two")


@pytest.mark.slow
def test_a_run_repeats_and_another_seed_differs(reference: Path, tmp_path: Path) -> None:
    config = str(write_config(tmp_path))
    complete("run", config, "--name", "again", folder=tmp_path)
    complete("run", config, "--name", "other", "--set", "run.seed=1", folder=tmp_path)
    assert same(reference, tmp_path / "runs" / "again")
    assert learned(reference) != learned(tmp_path / "runs" / "other")
