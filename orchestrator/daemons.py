"""The daemons of a run: connected, of the right kind and version, and holding the same data as the orchestrator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.runs import Run
from orchestrator.scheduling import Daemon
from repsearch.config import RunConfig
from repsearch.errors import ConfigError, DaemonError, from_kind
from repsearch.rpc.v1 import jobs_pb2


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """searchers (none for a run that does not search), learner, and the store root of each daemon by address."""

    searchers: Sequence[Daemon]
    learner: Daemon
    store_roots: Mapping[str, str]

    def all(self) -> list[Daemon]:
        """Every daemon."""
        return [*self.searchers, self.learner]


@contextmanager
def connected(searchers: Sequence[str], learner: str, config: RunConfig) -> Iterator[Fleet]:
    """Connect to the daemons at these addresses; raises `DaemonError` for one that is not there or is not what it should be.

    Those that `config` names are called as its table `[tls]` says, others (local ones) in plaintext.
    """
    from orchestrator.client import DaemonClient
    from orchestrator.security import tls_by_address

    for address in searchers:
        if list(searchers).count(address) > 1:
            raise ConfigError(f"searcher.addresses: {address} is named twice; name each daemon once")
    roots, tls = {}, tls_by_address(config)
    with ExitStack() as stack:
        clients = []
        for address in searchers:
            clients.append(stack.enter_context(DaemonClient(address, "searcher", tls=tls.get(address))))
            roots[address] = clients[-1].connect().store_root
        client = stack.enter_context(DaemonClient(learner, "learner", tls=tls.get(learner)))
        roots[learner] = client.connect().store_root
        yield Fleet(searchers=clients, learner=client, store_roots=roots)


def start_request(run: Run, fleet: Fleet, daemon: Daemon, *parts: str | int, **spec: Any) -> jobs_pb2.StartRequest:
    """Return a request of `run` for `daemon`, identified by run, term and `parts`; `spec` is one of the request's specs, by name."""
    return jobs_pb2.StartRequest(
        request_id="/".join(str(part) for part in (run.run_id, run.term, *parts)),
        run_id=run.run_id,
        term=run.term,
        run_path=run_path(run.folder, fleet.store_roots[daemon.address]),
        config_json=run.config.model_dump_json(),
        dataset_digest=run.dataset["digest"],
        **spec,
    )


def run_path(folder: Path, store_root: str) -> str:
    """Return the run's path relative to a daemon's store root.

    A daemon on another host may see the shared disk at another place; its store root is then `run.root` by another name.
    """
    real = folder.resolve()
    return str(real.relative_to(store_root)) if real.is_relative_to(store_root) else folder.name


def check_fleet(run: Run, fleet: Fleet) -> None:
    """Let every daemon load the data and build the networks, all at once.

    Raises the error that a daemon found, and `DaemonError` for one whose data differ from the orchestrator's.
    """
    jobs = []
    for daemon in fleet.all():
        request = start_request(run, fleet, daemon, "check", check=jobs_pb2.CheckSpec())
        jobs.append((daemon, daemon.start(request)))
    for daemon, job in jobs:
        for event in daemon.watch(job.job_id):
            job = event.state if event.WhichOneof("kind") == "state" else job
        _check_answer(run, daemon, job)


def _check_answer(run: Run, daemon: Daemon, job: jobs_pb2.Job) -> None:
    if job.state == jobs_pb2.JOB_STATE_FAILED:
        raise from_kind(job.failure.kind, f"{daemon.address}: {job.failure.message}")
    if job.state != jobs_pb2.JOB_STATE_SUCCEEDED:
        raise DaemonError(f"{daemon.address}: the check ended as {jobs_pb2.JobState.Name(job.state)}")
    if job.dataset_digest != run.dataset["digest"]:
        raise DaemonError(
            f"{daemon.address}: its data differ from the orchestrator's: dataset digest {job.dataset_digest}, "
            f"here {run.dataset['digest']}; give both the same files"
        )
