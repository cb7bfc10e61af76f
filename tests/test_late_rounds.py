"""Rounds over a shared folder on which every host sees the others' files late: the same bits as without delay."""

from __future__ import annotations

from pathlib import Path

import pytest

import learner.jobs
import searcher.jobs
from repsearch.config import RunConfig
from repsearch.datasets import cached_data
from repsearch.rpc.v1 import jobs_pb2
from repsearch.serving import JobResult
from store import Reference, ZarrStore, layout
from store.patience import Patience
from store.verification import verify_group
from tests.late_files import LateFiles, Share
from tests.learner_support import Recorder, digits_config, request_for

STRATEGY = {
    "name": "evolution",
    "population": 4,
    "parents": 1,
    "explorers": 1,
    "refiners": 2,
    "generations": [1, 1, 1],
    "strength": [0.3, 0.3, 0.3],
    "boost": [2.0, 2.0, 2.0],
    "blur_passes": [0, 0, 0],
}


def host(share: Share, name: str) -> ZarrStore:
    patience = Patience(90.0, clock=share.clock.time, pause=share.clock.pause)
    return ZarrStore(LateFiles(share, name), chunk_mb=0.01, late=patience)


def two_rounds(share: Share, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Return the digests of what two rounds learned, by jobs of a searcher and of a learner on hosts of their own."""
    config = digits_config(search={"strategy": STRATEGY}, learn={"epochs": 2})
    digest = cached_data(config.dataset, seed=config.run.seed).digest
    monkeypatch.setattr(searcher.jobs, "open_store", lambda *_, **__: host(share, "searcher"))
    monkeypatch.setattr(learner.jobs, "open_store", lambda *_, **__: host(share, "learner"))
    orchestrator, context, learned = host(share, "orchestrator"), Recorder(), list[tuple[str, ...]]()

    def told(result: JobResult) -> Reference:
        """What the orchestrator does with a result: it has to be there."""
        reference = Reference(result.path, result.digest)
        verify_group(orchestrator, reference)
        return reference

    initial = jobs_pb2.InitialiseSpec(output_path=layout.initial_network_path())
    network = told(learner.jobs.run_job(request_for(config, dataset_digest=digest, initialise=initial), context))
    for round in range(2):
        shards = [told(searcher.jobs.run_job(_search(config, digest, round, shard, network), context)) for shard in range(2)]
        orchestrator.write_document(layout.round_document(round), {"shards": [shard.digest for shard in shards]}, create=True)
        network = told(learner.jobs.run_job(_learn(config, digest, round, shards), context))
        arrays = orchestrator.manifest(network).arrays
        learned.append(tuple(chunk for name in sorted(arrays) for chunk in arrays[name].chunk_digests))
    return learned


def _search(config: RunConfig, digest: str, round: int, shard: int, network: Reference) -> jobs_pb2.StartRequest:
    spec = jobs_pb2.SearchSpec(
        round=round,
        shard=shard,
        attempt=1,
        first=100 * shard,
        count=100,
        trained=round > 0,
        network=jobs_pb2.Reference(path=network.path, digest=network.digest),
        output_path=layout.shard_path(round, shard, 1),
    )
    return request_for(config, dataset_digest=digest, search=spec)


def _learn(config: RunConfig, digest: str, round: int, shards: list[Reference]) -> jobs_pb2.StartRequest:
    spec = jobs_pb2.LearnSpec(
        round=round,
        attempt=1,
        shards=[jobs_pb2.Reference(path=shard.path, digest=shard.digest) for shard in shards],
        output_path=layout.learned_network_path(round, 1),
        checkpoint_path=layout.checkpoint_folder(round),
        epochs=2,
        digest=f"round {round}",
    )
    return request_for(config, dataset_digest=digest, learn=spec)


@pytest.mark.faults
@pytest.mark.fault(24)
def test_rounds_over_a_late_share_learn_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = two_rounds(Share(tmp_path / "prompt", 0.0), monkeypatch)
    for seed in range(3):
        share = Share(tmp_path / str(seed), 60.0, seed)
        assert two_rounds(share, monkeypatch) == expected
        assert share.clock.now > 60, "nobody had to wait"
