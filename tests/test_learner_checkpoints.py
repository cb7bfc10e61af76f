"""Checkpoints: exact state, the newest whole one, and what stays."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learner.checkpoints import Checkpoint, Partial, StoreCheckpoints, load_state, state_arrays
from repsearch.errors import StoreError
from repsearch.families import OPTIMISERS
from store import MemoryStore, Store, ZarrStore
from store.parameters import write_parameters
from tests.learner_support import network_for, tiny_data

FOLDER = "checkpoints/00001"


def checkpoints_of(store: Store, *, attempt: int = 1, digest: str = "d", keep: int = 2) -> StoreCheckpoints:
    return StoreCheckpoints(store, FOLDER, round=1, attempt=attempt, digest=digest, keep=keep, attributes={"run_id": "run"})


def checkpoint(epoch: int) -> Checkpoint:
    history = [{"epoch": number, "loss": 0.1} for number in range(1, epoch + 1)]
    return Checkpoint(epoch, {"network/a": np.full(3, epoch, np.float32)}, history, 10 * epoch, 0.5)


def damage(root: Path, name: str) -> None:
    """Flip a bit in the middle of the checkpoint's one chunk."""
    (path,) = (path for path in (root / FOLDER / name).rglob("*") if path.is_file() and path.suffix != ".json")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", OPTIMISERS.names())
def test_state_is_restored_bit_for_bit(name: str) -> None:
    data = tiny_data()

    def make() -> tuple[Any, torch.optim.Optimizer]:
        network = network_for(data).train()
        return network, OPTIMISERS.build({"name": name}).build(network.parameters())

    def step(network: Any, optimiser: torch.optim.Optimizer) -> None:
        optimiser.zero_grad()
        network(data.train.images[:16]).square().sum().backward()
        optimiser.step()

    network, optimiser = make()
    step(network, optimiser)
    restored, restored_optimiser = make()
    load_state(restored, restored_optimiser, state_arrays(network, optimiser))
    for pair in ((network, optimiser), (restored, restored_optimiser)):
        step(*pair)
    before, after = state_arrays(network, optimiser), state_arrays(restored, restored_optimiser)
    assert before.keys() == after.keys()
    assert any(key.startswith("optimiser/") for key in before)
    assert all(np.array_equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)


def test_a_network_that_does_not_fit_is_refused() -> None:
    network, other = network_for(tiny_data()), network_for(tiny_data(), convolutions=4)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    with pytest.raises(StoreError, match="does not fit"):
        load_state(other, optimiser, state_arrays(network, optimiser))


def test_the_newest_of_any_attempt_is_found() -> None:
    store = MemoryStore()
    assert checkpoints_of(store).newest() is None
    checkpoints_of(store, attempt=1).save(checkpoint(1))
    checkpoints_of(store, attempt=1).save(checkpoint(2))
    found = checkpoints_of(store, attempt=2).newest()
    assert found is not None
    assert (found.epoch, found.examples, found.seconds, found.history) == (2, 20, 0.5, checkpoint(2).history)
    assert np.array_equal(found.arrays["network/a"], checkpoint(2).arrays["network/a"])


def test_a_checkpoint_of_another_digest_is_not_used() -> None:
    store = MemoryStore()
    checkpoints_of(store, digest="other").save(checkpoint(5))
    assert checkpoints_of(store).newest() is None


def test_the_newest_stay_and_the_rest_go() -> None:
    store = MemoryStore()
    first = checkpoints_of(store, attempt=1)
    for epoch in range(1, 5):
        first.save(checkpoint(epoch))
    assert store.committed(FOLDER) == ["a01-e0003", "a01-e0004"]
    second = checkpoints_of(store, attempt=2)
    second.newest()
    second.save(checkpoint(5))
    assert store.committed(FOLDER) == ["a01-e0004", "a02-e0005"]


@pytest.mark.fault(14)
def test_a_fenced_learner_leaves_its_successors_checkpoints_alone() -> None:
    store = MemoryStore()
    stale = checkpoints_of(store, attempt=1, keep=1)
    stale.save(checkpoint(1))
    checkpoints_of(store, attempt=2, keep=1).save(checkpoint(3))
    stale.save(checkpoint(2))
    assert store.committed(FOLDER) == ["a01-e0002", "a02-e0003"]


@pytest.mark.fault(3, 21)
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = checkpoints_of(ZarrStore(tmp_path))
    for epoch in (1, 2):
        first.save(checkpoint(epoch))
    damage(tmp_path, "a01-e0002")
    again = checkpoints_of(ZarrStore(tmp_path), keep=1)
    with caplog.at_level(logging.WARNING):
        found = again.newest()
    assert found is not None
    assert found.epoch == 1
    assert "a01-e0002 is passed over" in caplog.text
    again.save(checkpoint(2))
    assert ZarrStore(tmp_path).committed(FOLDER) == ["a01-e0002"]
    whole = checkpoints_of(ZarrStore(tmp_path)).newest()
    assert whole is not None
    assert whole.epoch == 2


def test_with_all_damaged_there_is_none(tmp_path: Path) -> None:
    checkpoints_of(ZarrStore(tmp_path)).save(checkpoint(1))
    (tmp_path / FOLDER / "a01-e0001" / "MANIFEST.json").write_text("{")
    assert checkpoints_of(ZarrStore(tmp_path)).newest() is None


def test_checkpoints_within_an_epoch_lie_between_those_of_epochs() -> None:
    store = MemoryStore()
    kept = checkpoints_of(store, keep=2)
    kept.save(checkpoint(7))
    for step in (5, 40):
        kept.save(replace(checkpoint(7), partial=Partial(step, {"loss": 0.1 * step}, 3, 16 * step)))
    assert store.committed(FOLDER) == ["a01-e0007-s000005", "a01-e0007-s000040"]
    found = checkpoints_of(store).newest()
    assert found is not None and found.partial == Partial(40, {"loss": 4.0}, 3, 640) and found.epoch == 7
    kept.save(checkpoint(8))
    assert store.committed(FOLDER) == ["a01-e0007-s000040", "a01-e0008"]
    found = checkpoints_of(store).newest()
    assert found is not None and found.partial is None and found.epoch == 8


def test_a_checkpoint_that_cannot_be_read_back_removes_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that damages what it writes: the last good checkpoint stays, whatever comes after it."""
    kept = checkpoints_of(ZarrStore(tmp_path), keep=1)
    kept.save(checkpoint(1))

    def written_badly(store: Any, path: str, *rest: Any) -> Any:
        reference = write_parameters(store, path, *rest)
        damage(tmp_path, path.rpartition("/")[2])
        return reference

    monkeypatch.setattr("learner.checkpoints.write_parameters", written_badly)
    for epoch in (2, 3):
        kept.save(checkpoint(epoch))
    found = checkpoints_of(ZarrStore(tmp_path)).newest()
    assert found is not None and found.epoch == 1
