"""A daemon from its first check to its exit code.

The main thread does nothing but wait for what happens: a signal, the end of stdin, the compute process ready or refusing, no job left.
SIGTERM and SIGINT drain: no new jobs, waiting ones are cancelled, the running one has `grace_s` to finish and is then cancelled. The
second signal, or the end of stdin for a daemon that was started with it, stops at once.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import queue
import signal
import socket
import sys
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from repsearch import __version__
from repsearch.errors import ConfigError, DaemonError
from repsearch.rpc.v1 import compute_pb2, jobs_pb2
from repsearch.serving import PROTOCOL_VERSION, logs
from repsearch.serving.jobs import Service
from repsearch.serving.lease import Caretaker, Leases, Orphaned
from repsearch.serving.metrics import TableCollector, check_metrics, serve_metrics
from repsearch.serving.paths import prepare_root
from repsearch.serving.places import Place, refuse_remote
from repsearch.serving.protection import OPENED, Protection, Secrets, check_protection, is_loopback, read_secrets, split_address
from repsearch.serving.servicer import Health, JobServicer, Streams, build_server, server_credentials
from repsearch.serving.supervisor import Options, Supervisor
from repsearch.serving.table import CANCELLED, Table

STOPPED_AT_ONCE = 130
START_S = 300.0  # importing torch from a cold network disk takes minutes
ORPHANED_AFTER_S = 300.0
LIBRARIES = ("torch", "torchvision", "numpy", "zarr", "grpcio", "protobuf")
log = logging.getLogger("daemon")


@dataclass(frozen=True)
class Happening:
    """Something the main thread acts on: `what` is "ready", "refused", "signal", "stdin", "idle", "orphaned", "grace" or "late"."""

    what: str
    reason: str = ""


class Daemon:
    """One daemon; `run` serves until it is told to stop and returns the exit code."""

    def __init__(
        self,
        service: Service,
        options: Options,
        listen: str,
        grace_s: float,
        secrets: Secrets,
        orphaned: Orphaned = Orphaned.finish,
        orphaned_after_s: float = ORPHANED_AFTER_S,
    ) -> None:
        self._service, self._options, self._grace_s, self._protection = service, options, grace_s, secrets.text
        self._incarnation = options.incarnation
        self._hello = compute_pb2.Hello(device=options.device)
        self._happenings: queue.SimpleQueue[Happening] = queue.SimpleQueue()
        self._announced = False
        self._health = Health(service)
        self._supervisor = Supervisor(options, on_ready=self._on_ready, on_gone=self._on_gone)
        self._table = self._supervisor.table = Table(
            self._incarnation,
            on_queue=self._supervisor.pump,
            on_cancel=self._supervisor.cancel,
            on_idle=self._tell("idle"),
            on_push=self._supervisor.forward,
        )
        streams = Streams()
        leases = Leases()
        self._caretaker = Caretaker(
            self._table, leases, orphaned, orphaned_after_s, release=self._supervisor.release, leave=self._tell("orphaned")
        )
        servicer = JobServicer(service, options.store_root, self._table, self._info, streams, leases)
        self._server = build_server(service, servicer, self._health, streams, secrets.token)
        self._address = bind(self._server, listen, secrets)

    def run(self, *, exit_with_stdin: bool) -> int:
        """Serve until told to stop; 0 after a drain or the end of stdin, 130 when stopped at once, DaemonError if it cannot start."""
        self._catch_signals()
        if exit_with_stdin:
            threading.Thread(target=self._read_stdin, name="stdin", daemon=True).start()
        self._after(START_S, "late")
        self._supervisor.start()
        self._server.start()
        self._caretaker.start()
        try:
            return self._main()
        finally:
            self._close()

    def _main(self) -> int:
        while True:
            happening = self._happenings.get()
            log.debug("%s", happening)
            match happening.what:
                case "ready":
                    self._announce()
                case "refused" if not self._announced:
                    raise DaemonError(happening.reason)
                case "refused":
                    log.error("the compute process cannot be started again: %s", happening.reason)
                case "late" if not self._announced:
                    raise DaemonError(f"the compute process was not ready within {START_S:g} s")
                case "stdin":
                    log.info("stdin has ended: stopping at once")
                    return 0
                case "signal" if self._table.draining:
                    log.info("second signal: stopping at once")
                    return STOPPED_AT_ONCE
                case "signal":
                    self._drain()
                case "orphaned" if not self._table.draining:
                    log.info("nobody has called for long: leaving (--orphaned exit)")
                    self._drain()
                case "grace":
                    log.warning("the job did not finish within %g s: cancelling it", self._grace_s)
                    self._table.cancel_running()
            if self._table.draining and not self._table.unfinished():
                return 0

    def _drain(self) -> None:
        log.info("draining: no new jobs; a running one has %g s; signal again to stop at once", self._grace_s)
        self._health.shut()
        self._table.drain()
        self._after(self._grace_s, "grace")

    def _close(self) -> None:
        self._caretaker.close()
        self._health.shut()
        self._supervisor.stop()
        self._table.drain()
        self._table.finish(CANCELLED)
        # Streams have their last event now and end by themselves; the grace is for those whose client does not read.
        self._server.stop(1.0).wait()

    def _announce(self) -> None:
        if not self._announced:
            self._announced = True
            ready = {"service": self._service, "address": self._address, "pid": os.getpid(), "incarnation": self._incarnation}
            print(json.dumps(ready), flush=True)
            where = (self._address, self._protection, self._hello.device, self._hello.device_name)
            log.info("%s listens on %s (protection: %s), computes on %s (%s)", self._service, *where)

    def _on_ready(self, hello: compute_pb2.Hello) -> None:
        self._hello = hello
        self._health.set(serving=True)
        self._happenings.put(Happening("ready"))

    def _on_gone(self, never_ready: jobs_pb2.Failure | None) -> None:
        self._health.set(serving=False)
        if never_ready is not None:
            self._happenings.put(Happening("refused", never_ready.message))

    def _tell(self, what: str) -> Any:
        return lambda: self._happenings.put(Happening(what))

    def _after(self, seconds: float, what: str) -> None:
        timer = threading.Timer(seconds, self._tell(what))
        timer.daemon = True
        timer.start()

    def _catch_signals(self) -> None:
        # A Python handler runs on the main thread only, which does not notice a signal that comes just before it begins to wait. The
        # wakeup descriptor is written by the C handler, on whatever thread, and its reader always notices.
        self._signals, written = socket.socketpair()
        written.setblocking(False)
        signal.set_wakeup_fd(written.detach())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        threading.Thread(target=self._read_signals, name="signals", daemon=True).start()

    def _read_signals(self) -> None:
        while self._signals.recv(1):
            self._happenings.put(Happening("signal"))

    def _read_stdin(self) -> None:
        try:
            while os.read(0, 4096):
                pass
        except OSError:
            log.info("stdin cannot be read; taken as its end")
        self._happenings.put(Happening("stdin"))

    def collector(self) -> TableCollector:
        """Return what tells Prometheus of this daemon."""
        facts = {"service": self._service, "version": __version__, "incarnation": self._incarnation, "device": self._options.device}
        return TableCollector(self._table, facts, self._supervisor.ready)

    def _info(self) -> jobs_pb2.Info:
        return jobs_pb2.Info(
            service=self._service,
            protocol_version=PROTOCOL_VERSION,
            package_version=__version__,
            incarnation=self._incarnation,
            device=self._hello.device,
            device_name=self._hello.device_name,
            threads=self._options.threads,
            store_root=str(self._options.store_root),
            draining=self._table.draining,
            unfinished_jobs=self._table.unfinished(),
            libraries=library_versions(),
            pid=os.getpid(),
        )


def library_versions() -> dict[str, str]:
    """Versions of what results depend on, read from package metadata: nothing is imported."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def bind(server: Any, listen: str, secrets: Secrets) -> str:
    """Bind `server` to `listen` ("host:port", port 0 for a free one) and return the address with its port; an error says why not."""
    host, wanted = split_address(listen)
    try:
        port = server.add_insecure_port(listen) if secrets.pair is None else server.add_secure_port(listen, server_credentials(secrets))
    except RuntimeError:
        port = 0
    if port == 0:
        reason = _bind_error(host.strip("[]"), wanted)
        raise DaemonError(f"cannot listen on {listen}: {reason}; stop what listens there or choose another --listen")
    return f"{host}:{port}"


def _bind_error(host: str, port: int) -> str:
    """gRPC says only that it failed; ask the kernel why."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(address)
    except OSError as error:
        return error.strerror or str(error)
    return "the address cannot be bound"


def serve(
    *,
    service: Service,
    job_function: str,
    listen: str,
    store: Place,
    check_remote: Callable[[str], None] = refuse_remote,
    device: str,
    threads: int,
    log_format: str,
    grace_s: float,
    exit_with_stdin: bool,
    protection: Protection,
    orphaned: Orphaned = Orphaned.finish,
    orphaned_after_s: float = ORPHANED_AFTER_S,
    metrics: str = "",
) -> int:
    """Serve jobs with `job_function` ("module:attribute") until told to stop; return the exit code.

    One line of JSON on stdout says when and where it is ready; logs go to stderr. Raises ConfigError, StoreError or DaemonError for
    what cannot be served.
    """
    incarnation = uuid.uuid4().hex
    logs.configure(service, log_format, incarnation)
    if threads < 1:
        raise ConfigError(f"threads must be at least 1 (given: {threads})")
    if grace_s < 0:
        raise ConfigError(f"grace must be at least 0 seconds (given: {grace_s:g})")
    if orphaned_after_s <= 0:
        raise ConfigError(f"orphaned-after must be more than 0 seconds (given: {orphaned_after_s:g})")
    check_protection(listen, protection)
    if metrics:
        check_metrics(metrics, protection)
    secrets = read_secrets(protection)
    options = Options(service, job_function, device, threads, prepare_root(store, check_remote), log_format, incarnation)
    if protection.insecure and not is_loopback(split_address(listen)[0]):
        log.warning("INSECURE: %s is open: %s", listen, OPENED.format(store=options.store_root))
    daemon = Daemon(service, options, listen, grace_s, secrets, orphaned, orphaned_after_s)
    if metrics:
        address, _ = serve_metrics([daemon.collector()], metrics, protection)
        log.info("metrics are at %s/metrics", address)
    code = daemon.run(exit_with_stdin=exit_with_stdin)
    sys.stdout.flush()
    return code
