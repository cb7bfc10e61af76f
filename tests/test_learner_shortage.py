"""Memory that runs out: what is said, and that the daemon serves the next job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learner import jobs, streaming
from learner.shortage import explained, smaller_steps
from repsearch.config import LearnConfig, parse_config
from repsearch.errors import JobError
from repsearch.rpc.v1 import jobs_pb2
from repsearch.serving.compute import failure
from store import ZarrStore, layout
from tests.learner_support import digits_config, request_for
from tests.serving_processes import daemon, finish
from tests.test_learner_jobs import data_of, learn, learn_spec, shards_in

TOO_MUCH = 10**15


def raises(error: Exception) -> Callable[..., Any]:
    def function(*arguments: object, **named: object) -> None:
        raise error

    return function


@pytest.mark.parametrize(
    ("run_out", "message"),
    [
        (
            lambda: torch.empty(TOO_MUCH, dtype=torch.uint8),
            r"memory ran out here \(1,000,000,000 MB more were asked for, [\d,]+ MB are free\)",
        ),
        (lambda: np.empty(TOO_MUCH, np.uint8), r"memory ran out here \(Unable to allocate .*\)"),
        (
            raises(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")),
            r"here \(CUDA out of memory\. Tried to allocate 2 GiB\.\)",
        ),
        (raises(MemoryError()), r"memory ran out here \(no more is said\)"),
    ],
)
def test_every_kind_of_shortage_is_one_error_with_the_way_out(run_out: Callable[[], object], message: str) -> None:
    with pytest.raises(JobError, match=message + "; do that$") as caught, explained("here", "do that"):
        run_out()
    assert failure(caught.value).kind == "JobError"  # one of ours: the compute process goes on


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shape"), explained("here", "do that"):
        raise RuntimeError("shape mismatch")


def test_a_step_that_does_not_fit_names_the_batch_size_to_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "fit", lambda *_: torch.empty(TOO_MUCH))
    config = digits_config()
    with pytest.raises(JobError, match=r"memory ran out learning \(.*\); lower learn\.batch_size from 50 to 25"):
        learn(tmp_path, config, learn_spec(shards_in(tmp_path, config)))
    assert ZarrStore(tmp_path / "run").committed(layout.network_folder(1)) == []
    assert smaller_steps(LearnConfig(batch_size=2)) == "take a network of smaller width"


def test_targets_that_do_not_fit_name_the_limit_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming.CommittedTargets, "whole", lambda _: np.empty(TOO_MUCH))
    config = digits_config()
    with pytest.raises(
        JobError, match=r"memory ran out reading the round's targets .*they take \d+ MB: set learn\.memory_mb to \d+ or less"
    ):
        learn(tmp_path, config, learn_spec(shards_in(tmp_path, config)))


@pytest.mark.timeout(90)
def test_the_daemon_fails_the_job_and_serves_the_next_with_the_same_process(tmp_path: Path) -> None:
    small = digits_config()
    # Refused at once, whatever the machine: the weights of the second block alone take 256 TB.
    network = {"name": "mlp", "widths": [64, 10**12]}
    huge = parse_config({"dataset": small.dataset, "network": network, "search": {"layers": [0, 1, "logits"]}})
    with daemon(tmp_path / "store", service="learner", module="learner") as server:
        client = server.client()
        digest = data_of(small).digest
        spec = jobs_pb2.InitialiseSpec(output_path=layout.initial_network_path())
        started = client.start(request_for(huge, dataset_digest=digest, initialise=spec))
        job = finish(client, started.job_id)
        assert job.state == jobs_pb2.JOB_STATE_FAILED
        assert job.failure.kind == "JobError"
        assert "memory ran out building or running the network" in job.failure.message
        assert "take a network of smaller width" in job.failure.message
        assert job.failure.traceback == ""
        following = request_for(small, dataset_digest=digest, initialise=spec)
        following.request_id = "next"
        done = finish(client, client.start(following).job_id)
        assert done.state == jobs_pb2.JOB_STATE_SUCCEEDED
        assert server.process.poll() is None
        assert "replaced" not in server.log()
