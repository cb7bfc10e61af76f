"""The daemons of a run: connected, of the right kind and version, and holding the same data as the orchestrator."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from orchestrator.attempts import Daemon
from orchestrator.remote import is_remote
from orchestrator.roster import Roster, StartedAnewError
from orchestrator.runs import Run
from repsearch.config import RunConfig
from repsearch.errors import ConfigError, DaemonError, from_kind
from repsearch.rpc.v1 import jobs_pb2

if TYPE_CHECKING:
    from orchestrator.client import DaemonClient


RENEW_S = 10.0
"""Seconds between two calls to a daemon that has no job of ours; it gives up on us after `--orphaned-after`."""


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """searchers (none for a run that does not search), learner, and the store root of each daemon by address.

    started_anew: starts a local daemon whose process has ended anew, and says so; see `LocalDaemons.started_anew`.
    """

    searchers: Sequence[Daemon]
    learner: Daemon
    store_roots: Mapping[str, str]
    started_anew: Callable[[str], str] = lambda address: ""

    def all(self) -> list[Daemon]:
        """Every daemon."""
        return [*self.searchers, self.learner]


@contextmanager
def connected(
    searchers: Sequence[str], learner: str, config: RunConfig, started_anew: Callable[[str], str] = lambda address: ""
) -> Iterator[Fleet]:
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
        yield Fleet(searchers=clients, learner=client, store_roots=roots, started_anew=started_anew)


def start_request(run: Run, fleet: Fleet, daemon: Daemon, *parts: str | int, **spec: Any) -> jobs_pb2.StartRequest:
    """Return a request of `run` for `daemon`, identified by run, term and `parts`; `spec` is one of the request's specs, by name."""
    return jobs_pb2.StartRequest(
        request_id="/".join(str(part) for part in (run.run_id, run.term, *parts)),
        run_id=run.run_id,
        term=run.term,
        run_path=run_path(run, daemon.address, fleet.store_roots[daemon.address]),
        config_json=run.config.model_dump_json(),
        dataset_digest=run.dataset["digest"],
        **spec,
    )


def run_path(run: Run, address: str, store_root: str) -> str:
    """Return the run's path relative to the store root of the daemon at `address`; raises `DaemonError` where it cannot have one.

    A daemon on another host may see the shared disk at another place; its store root is then `run.root` by another name.
    """
    if is_remote(run.location) or is_remote(store_root):
        if not run.location.startswith(f"{store_root}/"):
            root = run.location.rpartition("/")[0]
            raise DaemonError(f"{address}: its --store is {store_root}, this run's store is in {root}; start it with --store {root}")
        return run.location.removeprefix(f"{store_root}/")
    real = run.folder.resolve()
    return str(real.relative_to(store_root)) if real.is_relative_to(store_root) else run.folder.name


def check_fleet(run: Run, fleet: Fleet) -> None:
    """Let every daemon load the data and build the networks, all at once.

    Raises the error that a daemon found, and `DaemonError` for one whose data differ from the orchestrator's.
    """
    jobs = []
    for daemon in fleet.all():
        request = start_request(run, fleet, daemon, "check", check=jobs_pb2.CheckSpec())
        jobs.append((daemon, daemon.start(request)))
    for daemon, job in jobs:
        _check_answer(run, daemon, _last(daemon, job))


def rejoin(run: Run, fleet: Fleet, daemon: DaemonClient) -> None:
    """Make a daemon usable again that was lost: the same process, or another at its address; raises `DaemonError` while that fails.

    What it still does for the run is cancelled: somebody else does it. The check that follows shows that its compute works.
    """
    if what := fleet.started_anew(daemon.address):
        raise StartedAnewError(f"{daemon.service} at {daemon.address}: {what}")
    info = daemon.connect()
    if info.draining:
        raise DaemonError(f"{daemon.address}: it is stopping, and takes no more jobs")
    if info.store_root != fleet.store_roots[daemon.address]:
        there = fleet.store_roots[daemon.address]
        raise DaemonError(f"{daemon.address}: it came back with --store {info.store_root}, it had {there}; start it with the latter")
    for job_id in info.unfinished_jobs:
        if daemon.get(job_id).run_id == run.run_id:
            daemon.cancel(job_id, run.term)
    job = daemon.start(start_request(run, fleet, daemon, "check", uuid.uuid4().hex, check=jobs_pb2.CheckSpec()))
    _check_answer(run, daemon, _last(daemon, job))


@contextmanager
def renewed(fleet: Fleet, roster: Roster) -> Iterator[None]:
    """Tell every daemon now and then that its orchestrator is there, also while it has no job for it."""
    closed = threading.Event()

    def renew() -> None:
        while not closed.wait(RENEW_S):
            for daemon in fleet.all():
                if not roster.is_lost(daemon) and not closed.is_set():
                    cast("DaemonClient", daemon).renew()

    threading.Thread(target=renew, name="leases", daemon=True).start()
    try:
        yield
    finally:
        closed.set()


def _last(daemon: Daemon, job: jobs_pb2.Job) -> jobs_pb2.Job:
    """Return `job` at its end."""
    for event in daemon.watch(job.job_id):
        job = event.state if event.WhichOneof("kind") == "state" else job
    return job


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
