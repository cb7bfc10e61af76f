"""A shard is written while it is searched: the same bytes as written whole, and a fault of either ends both."""

from __future__ import annotations

import errno
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repsearch.datasets import cached_data
from repsearch.errors import StoreError
from repsearch.networks import to_arrays
from repsearch.rpc.v1 import jobs_pb2
from repsearch.serving.jobs import JobCancelled
from searcher import reports
from searcher.jobs import run_job
from searcher.writing import PENDING, Background
from store import Reference, ZarrStore, layout
from store.local_files import LocalFile
from store.parameters import write_parameters
from tests.learner_support import Recorder, digits_config, network_for, request_for

CONFIG = digits_config(
    search={
        "strategy": {
            "name": "evolution_strategy",
            "pairs": 3,
            "generations": [2, 2, 1],
            "sigma": [0.3] * 3,
            "step": [0.3] * 3,
            "blur_passes": [1, 0, 0],
        }
    }
)
OUTPUT = layout.shard_path(0, 0, 1)
DEADLINE_S = 20.0


def job(root: Path, count: int = 100) -> jobs_pb2.StartRequest:
    data, store = cached_data(CONFIG.dataset, seed=0), ZarrStore(root / "run")
    network = write_parameters(store, layout.initial_network_path(), to_arrays(network_for(data)), {"kind": "network"})
    reference = jobs_pb2.Reference(path=network.path, digest=network.digest)
    spec = jobs_pb2.SearchSpec(round=0, shard=0, attempt=1, first=0, count=count, network=reference, output_path=OUTPUT)
    return request_for(CONFIG, dataset_digest=data.digest, search=spec)


def writers() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith(("shard-writer", "chunks", "flush"))]


def test_a_shard_is_that_of_its_arrays_written_whole(tmp_path: Path) -> None:
    result = run_job(job(tmp_path), Recorder(store_root=tmp_path))
    store = ZarrStore(tmp_path / "run")
    found = store.manifest(result.path)
    arrays = {name: store.read(result.path, name) for name in found.arrays}
    copy = ZarrStore(tmp_path / "copy")
    assert copy.write(OUTPUT, arrays, attributes=found.attributes) == Reference(result.path, result.digest)
    assert len(arrays["block0"]) == 100
    assert writers() == []


class Slow:
    """A writer that begins its first append and goes on when it is released."""

    def __init__(self) -> None:
        self.begun, self.released = threading.Event(), threading.Event()
        self.rows = 0

    def append(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.begun.set()
        assert self.released.wait(DEADLINE_S)
        self.rows += len(next(iter(arrays.values())))

    def commit(self, attributes: Mapping[str, Any]) -> Reference:
        return Reference("g", "")

    def __enter__(self) -> Slow:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_searching_goes_on_while_a_piece_is_written() -> None:
    slow, rows = Slow(), np.zeros((5, 2))
    with Background(slow) as shard:
        for _ in range(1 + PENDING):
            shard.append({"x": rows})  # none of them returns from here if it waits for the disk
        assert slow.begun.wait(DEADLINE_S)
        assert slow.rows == 0
        slow.released.set()
        shard.commit({})
    assert slow.rows == 5 * (1 + PENDING)
    assert writers() == []


def test_pieces_wait_rather_than_fill_the_memory() -> None:
    slow, waited = Slow(), threading.Event()

    def search() -> None:
        with Background(slow) as shard:
            for _ in range(2 + PENDING):
                shard.append({"x": np.zeros((1, 1))})
            waited.set()
            shard.commit({})

    thread = threading.Thread(target=search)
    thread.start()
    assert slow.begun.wait(DEADLINE_S)
    assert not waited.wait(0.1)
    slow.released.set()
    thread.join(DEADLINE_S)
    assert waited.is_set()


@pytest.mark.fault(22)
def test_a_full_disk_fails_the_job_and_leaves_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = job(tmp_path)

    def full(file: LocalFile, data: memoryview) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("store.local_files.LocalFile.write", full)
    with pytest.raises(StoreError, match=rf"{OUTPUT}: cannot be written in .*run: No space left on device; make room on the disk"):
        run_job(request, Recorder(store_root=tmp_path))
    assert writers() == []
    assert ZarrStore(tmp_path / "run").committed(layout.search_folder(0)) == []


def test_a_cancelled_job_commits_nothing_and_leaves_no_thread(tmp_path: Path) -> None:
    calls = iter(range(30))

    def cancel() -> None:
        if next(calls, None) is None:
            raise JobCancelled("job")

    with pytest.raises(JobCancelled):
        run_job(job(tmp_path), Recorder(store_root=tmp_path, on_check=cancel))
    assert writers() == []
    store = ZarrStore(tmp_path / "run")
    assert store.committed(layout.search_folder(0)) == []


class Listener(Recorder):
    """Keeps the states that a search reports."""

    def progress(self, done: int, total: int, *, unit: str, text: str = "", search: jobs_pb2.SearchState | None = None) -> None:
        assert search is not None
        STATES.append((done, text, search))


STATES: list[tuple[int, str, jobs_pb2.SearchState]] = []


def test_reports_name_layer_and_generation_within_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    STATES.clear()
    monkeypatch.setattr(reports, "REPORT_S", 0.0)
    result = run_job(job(tmp_path, count=32), Listener(store_root=tmp_path))
    first = [(state.layer, state.generation, state.generations) for done, _, state in STATES if done == 0]
    expected = [("block0", 0, 2), ("block0", 1, 2), ("block0", 2, 2), ("block1", 0, 2), ("block1", 1, 2), ("block1", 2, 2)]
    assert first == [*expected, ("logits", 0, 1), ("logits", 1, 1)]
    assert [state.ahead for done, _, state in STATES if done == 0] == pytest.approx([16 * step / 8 for step in range(1, 9)])
    assert "logits generation 1/1" in STATES[-1][1]
    done, _, last = STATES[-1]
    attributes = ZarrStore(tmp_path / "run").manifest(result.path).attributes
    assert (done, last.evaluations) == (32, attributes["evaluations"])
    assert {layer.name: list(layer.cross_entropy) for layer in last.layers} == attributes["curves"]
    assert {layer.name: layer.solved for layer in last.layers} == attributes["solved"]
