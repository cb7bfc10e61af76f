"""The gRPC side of a daemon: messages in and out, refusals as status codes, bounded streams. The only module here that serves gRPC.

Both services have the same six calls, so one servicer serves either. Streams hold a thread each; they are capped at `STREAMS` and the
pool has `HEADROOM` more threads, so health and unary calls always find one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from repsearch.rpc.v1 import jobs_pb2, jobs_pb2_grpc
from repsearch.serving import refusals
from repsearch.serving.jobs import Service
from repsearch.serving.lease import Leases
from repsearch.serving.limits import MESSAGE_BYTES, check_size
from repsearch.serving.places import Place
from repsearch.serving.protection import Secrets
from repsearch.serving.requests import admit, admit_item
from repsearch.serving.table import Table
from repsearch.serving.tokens import TokenInterceptor

STREAMS = 64
HEADROOM = 32
DETAILS_LENGTH = 2000
OPTIONS = [
    ("grpc.so_reuseport", 0),  # otherwise two daemons share a port and each gets half of the calls
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),  # clients ping every 8 s; the default is 5 minutes
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
]
CODES = {
    refusals.BadRequest: grpc.StatusCode.INVALID_ARGUMENT,
    refusals.OutsideRoot: grpc.StatusCode.PERMISSION_DENIED,
    refusals.StaleTerm: grpc.StatusCode.FAILED_PRECONDITION,
    refusals.QueueFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    refusals.TooManyStreams: grpc.StatusCode.RESOURCE_EXHAUSTED,
    refusals.RequestReused: grpc.StatusCode.ALREADY_EXISTS,
    refusals.UnknownJob: grpc.StatusCode.NOT_FOUND,
    refusals.OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    refusals.Draining: grpc.StatusCode.FAILED_PRECONDITION,
}
NAMES: dict[Service, str] = {"searcher": "repsearch.rpc.v1.Searcher", "learner": "repsearch.rpc.v1.Learner"}


class Streams:
    """Counts open streams; `slot` refuses one too many."""

    def __init__(self, limit: int = STREAMS) -> None:
        self._limit = limit
        self._free = threading.BoundedSemaphore(limit)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold a place for one stream; TooManyStreams if there is none."""
        if not self._free.acquire(blocking=False):
            raise refusals.TooManyStreams(f"{self._limit} streams are open already; close one or ask with Get")
        try:
            yield
        finally:
            self._free.release()


@contextmanager
def answering(context: Any) -> Iterator[None]:
    """Turn a Refusal into the status of the call."""
    try:
        yield
    except refusals.Refusal as refusal:
        # Headers, which carry it, are bounded.
        context.abort(CODES[type(refusal)], str(refusal)[:DETAILS_LENGTH])


class JobServicer:
    """The six calls of `Searcher` and `Learner`."""

    def __init__(
        self, service: Service, root: Place, table: Table, info: Callable[[], jobs_pb2.Info], streams: Streams, leases: Leases | None = None
    ) -> None:
        self._service, self._root, self._table, self._info, self._streams = service, root, table, info, streams
        self._leases = leases or Leases()

    def GetInfo(self, request: jobs_pb2.GetInfoRequest, context: Any) -> jobs_pb2.Info:  # noqa: N802
        self._leases.renew()
        return self._info()

    def Start(self, request: jobs_pb2.StartRequest, context: Any) -> jobs_pb2.Job:  # noqa: N802
        self._leases.renew(request.run_id)
        with answering(context):
            return self._table.submit(admit(self._service, self._root, request))
        raise AssertionError("abort raises")

    def Get(self, request: jobs_pb2.GetRequest, context: Any) -> jobs_pb2.Job:  # noqa: N802
        self._leases.renew(self._table.run_of(request.job_id))
        with answering(context):
            check_size(request)
            return self._table.get(request.job_id)
        raise AssertionError("abort raises")

    def Cancel(self, request: jobs_pb2.CancelRequest, context: Any) -> jobs_pb2.Job:  # noqa: N802
        self._leases.renew(self._table.run_of(request.job_id))
        with answering(context):
            check_size(request)
            return self._table.cancel(request.job_id, request.term)
        raise AssertionError("abort raises")

    def Push(self, request: jobs_pb2.PushRequest, context: Any) -> jobs_pb2.Job:  # noqa: N802
        self._leases.renew(self._table.run_of(request.job_id))
        with answering(context):
            check_size(request)
            return self._table.push(admit_item(self._service, self._table.run_path(request.job_id), request))
        raise AssertionError("abort raises")

    def Watch(self, request: jobs_pb2.WatchRequest, context: Any) -> Iterator[jobs_pb2.Event]:  # noqa: N802
        closed = threading.Event()

        def close() -> None:
            closed.set()
            self._table.wake(request.job_id)

        with answering(context), self._streams.slot(), self._leases.watching(self._table.run_of(request.job_id)):
            check_size(request)
            if not context.add_callback(close):
                return
            yield from self._table.watch(request.job_id, request.from_sequence, closed)


class CappedReflection:
    """Reflection whose streams count like any other."""

    def __init__(self, names: list[str], streams: Streams) -> None:
        self._inner: Any = reflection.ReflectionServicer(names)
        self._streams = streams

    def ServerReflectionInfo(self, request_iterator: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        with answering(context), self._streams.slot():
            yield from self._inner.ServerReflectionInfo(request_iterator, context)


class Health:
    """The standard health service: NOT_SERVING until told otherwise."""

    def __init__(self, service: Service) -> None:
        self.servicer = health.HealthServicer()
        self._names = ("", NAMES[service])
        self.set(serving=False)

    def set(self, *, serving: bool) -> None:
        """Say for every name whether jobs can be run now."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in self._names:
            self.servicer.set(name, status)

    def shut(self) -> None:
        """Say NOT_SERVING for good."""
        self.servicer.enter_graceful_shutdown()


def build_server(service: Service, servicer: JobServicer, health_: Health, streams: Streams, token: str | None = None) -> Any:
    """Return a gRPC server with the job service, health and reflection, not yet listening; with `token`, only for calls that carry it."""
    pool = futures.ThreadPoolExecutor(STREAMS + HEADROOM, thread_name_prefix="rpc")
    server = grpc.server(pool, options=OPTIONS, interceptors=[] if token is None else [TokenInterceptor(token)])
    add: dict[Service, Any] = {
        "searcher": jobs_pb2_grpc.add_SearcherServicer_to_server,
        "learner": jobs_pb2_grpc.add_LearnerServicer_to_server,
    }
    add[service](servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(health_.servicer, server)
    names = [NAMES[service], health.SERVICE_NAME, reflection.SERVICE_NAME]
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(CappedReflection(names, streams), server)
    return server


def server_credentials(secrets: Secrets) -> Any:
    """Return gRPC's credentials of a server with a certificate, which asks for its clients' where there is an authority for them."""
    assert secrets.pair is not None
    certificate, key = secrets.pair
    return grpc.ssl_server_credentials([(key, certificate)], root_certificates=secrets.ca, require_client_auth=secrets.ca is not None)
