"""How the orchestrator talks to one daemon: checked on connecting, bounded in time, and every failure a `DaemonError`.

All calls are idempotent, so they are repeated for `retry_s` when the connection breaks. A watch that is cut goes on from the next
sequence number. A daemon that has gone, hangs (noticed within `SILENCE_S`, then tried for `retry_s`), or came back as another
incarnation, which knows nothing of our jobs, ends both.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Literal, Self, TypeVar

import grpc

from orchestrator import handshake
from orchestrator.attempts import TakenOverError
from orchestrator.security import ClientTls, open_channel
from repsearch import __version__
from repsearch.errors import DaemonError, SecurityError
from repsearch.rpc.v1 import jobs_pb2, jobs_pb2_grpc
from repsearch.serving import PROTOCOL_VERSION, TAKEN_OVER

Service = Literal["searcher", "learner"]
FINISHED = (jobs_pb2.JOB_STATE_SUCCEEDED, jobs_pb2.JOB_STATE_FAILED, jobs_pb2.JOB_STATE_CANCELLED)
STUBS: dict[Service, Any] = {"searcher": jobs_pb2_grpc.SearcherStub, "learner": jobs_pb2_grpc.LearnerStub}
OPTIONS = [
    ("grpc.keepalive_time_ms", 8_000),
    ("grpc.keepalive_timeout_ms", 4_000),
    ("grpc.http2.ping_timeout_ms", 4_000),  # without it a stopped peer is noticed only after a minute
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),  # a new client does not inherit another's broken connection
]
PAUSE_S = 0.1
LEAST_HANDSHAKE_S = 1.0
RENEW_CALL_S = 2.0
SILENCE_S = 10.0  # five heartbeats; keepalive alone does not notice a process whose network threads live on
HINTS = {
    grpc.StatusCode.UNAVAILABLE: "is it running, and is the address right?",
    grpc.StatusCode.DEADLINE_EXCEEDED: "it does not answer: is the process stopped, or the address another program's?",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "it has too much to do: is another run using it?",
    grpc.StatusCode.PERMISSION_DENIED: "start the daemon with the --store that holds the run",
    grpc.StatusCode.NOT_FOUND: "it has forgotten the job: start it again",
    grpc.StatusCode.CANCELLED: "the connection was closed on our side",
}
UNKNOWN_HINT = "set tls.token_file of the configuration to a file with the token that the daemon has in --token-file"
AnswerT = TypeVar("AnswerT")


class DaemonClient:
    """A connection to the daemon of `service` at `address` ("host:port"). Safe to use from several threads.

    `tls`: how to call it, None for plaintext. `connect_s` bounds the first connection, `call_s` one call, `retry_s` the time for which a
    broken connection is tried again.
    """

    def __init__(
        self,
        address: str,
        service: Service,
        *,
        tls: ClientTls | None = None,
        connect_s: float = 10.0,
        call_s: float = 10.0,
        retry_s: float = 5.0,
    ) -> None:
        self.address, self.service = address, service
        self.incarnation = ""
        self._connect_s, self._call_s, self._retry_s = connect_s, call_s, retry_s
        self._closed = threading.Event()
        self._tls, self._channel = tls, open_channel(address, tls, OPTIONS)
        self._stub = STUBS[service](self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls and watches in progress end with a DaemonError."""
        self._closed.set()
        self._channel.close()

    def connect(self) -> jobs_pb2.Info:
        """Return what the daemon says of itself; DaemonError unless it is the right service, protocol and package version."""
        info: jobs_pb2.Info = self._call(self._stub.GetInfo, jobs_pb2.GetInfoRequest(), within_s=self._connect_s)
        if info.service != self.service:
            raise self._error(f"it is a {info.service or 'nameless service'}, not a {self.service}; check the configured addresses")
        if info.protocol_version != PROTOCOL_VERSION:
            raise self._error(f"it speaks protocol {info.protocol_version}, we speak {PROTOCOL_VERSION}; install the same version on both")
        if info.package_version != __version__:
            raise self._error(f"it is version {info.package_version}, we are {__version__}; install the same version on both")
        self.incarnation = info.incarnation
        return info

    def renew(self) -> None:
        """Tell the daemon that somebody is there; whether it is there itself shows elsewhere."""
        with suppress(DaemonError):
            self._call(self._stub.GetInfo, jobs_pb2.GetInfoRequest(), within_s=RENEW_CALL_S)

    def start(self, request: jobs_pb2.StartRequest) -> jobs_pb2.Job:
        """Start the job of `request`, or return it if it is started already."""
        return self._ask(self._stub.Start, request)

    def get(self, job_id: str) -> jobs_pb2.Job:
        """Return the job as it is now."""
        return self._ask(self._stub.Get, jobs_pb2.GetRequest(job_id=job_id))

    def cancel(self, job_id: str, term: int) -> jobs_pb2.Job:
        """Cancel the job; it is finished when its last event says so."""
        return self._ask(self._stub.Cancel, jobs_pb2.CancelRequest(job_id=job_id, term=term))

    def push(self, job_id: str, term: int, sequence: int, item: jobs_pb2.Item) -> jobs_pb2.Job:
        """Give a stream job its item number `sequence`, from 1; repeating it does nothing."""
        return self._ask(self._stub.Push, jobs_pb2.PushRequest(job_id=job_id, term=term, sequence=sequence, item=item))

    def watch(self, job_id: str, *, from_sequence: int = 1) -> Iterator[jobs_pb2.Event]:
        """Yield the job's events, each once and in order, up to its last change of state; heartbeats (sequence 0) come between.

        A cut stream is taken up again. A heartbeat comes at least every 2 s; one whose counter stands still means alive but stuck.
        """
        expected = max(from_sequence, 1)
        give_up_at: float | None = None
        while True:
            stream = self._open(jobs_pb2.WatchRequest(job_id=job_id, from_sequence=expected))
            silence = _Silence(stream)
            try:
                for event in stream:
                    silence.heard()
                    give_up_at = None
                    if event.sequence and event.sequence != expected:
                        raise self._error(f"job {job_id}: event {event.sequence} came instead of {expected}; report this as a bug")
                    expected += bool(event.sequence)
                    yield event
                    if event.WhichOneof("kind") == "state" and event.state.state in FINISHED:
                        return
                cut = self._error(f"the stream of job {job_id} ended before the job")
            except grpc.RpcError as error:
                cut = self._translate(error)
                if self._closed.is_set() or not (silence.fired or error.code() == grpc.StatusCode.UNAVAILABLE):
                    raise cut from None
            finally:
                silence.stop()
                stream.cancel()
            now = time.monotonic()
            give_up_at = give_up_at or now + self._retry_s
            self._reach_again(cut, give_up_at - now)

    def _open(self, request: jobs_pb2.WatchRequest) -> Any:
        try:
            return self._stub.Watch(request)
        except ValueError as error:
            raise self._error(f"{error}; the client was closed") from None

    def _reach_again(self, cut: DaemonError, left_s: float) -> None:
        """Return when the daemon answers, as the same incarnation, within `left_s`; else raise `cut` or what is wrong now."""
        if left_s <= 0:
            raise cut
        self._closed.wait(PAUSE_S)
        info: jobs_pb2.Info = self._call(self._stub.GetInfo, jobs_pb2.GetInfoRequest(), within_s=left_s)
        self._same(info.incarnation)

    def _ask(self, method: Callable[..., jobs_pb2.Job], request: Any) -> jobs_pb2.Job:
        job = self._call(method, request, within_s=self._retry_s, call_s=self._call_s)
        self._same(job.incarnation)
        return job

    def _same(self, incarnation: str) -> None:
        if self.incarnation and incarnation != self.incarnation:
            raise self._error("it was started anew and knows nothing of our jobs; connect to it again")

    def _call(self, method: Callable[..., AnswerT], request: Any, *, within_s: float, call_s: float | None = None) -> AnswerT:
        """Call `method`, again while the daemon is unavailable and `within_s` has not passed; one try takes `call_s`, or what is left.

        A `SecurityError` comes at once: trying again does not help.
        """
        give_up_at, asked = time.monotonic() + within_s, False
        while True:
            try:
                return method(request, timeout=call_s or max(give_up_at - time.monotonic(), PAUSE_S))
            except grpc.RpcError as error:
                again = error.code() == grpc.StatusCode.UNAVAILABLE and not self._closed.is_set()
                if again and not asked:
                    asked = True
                    self._check_handshake(give_up_at - time.monotonic())
                if not again or time.monotonic() + PAUSE_S >= give_up_at:
                    raise self._translate(error) from None
            except ValueError as error:  # gRPC's word for a closed channel
                raise self._error(f"{error}; the client was closed") from None
            self._closed.wait(PAUSE_S)

    def _translate(self, error: Any) -> DaemonError:
        """The one place where a gRPC failure becomes ours."""
        code, details = error.code(), error.details() or ""
        if code == grpc.StatusCode.UNAUTHENTICATED:
            return self._error(f"{details}; {UNKNOWN_HINT}", SecurityError)
        if code == grpc.StatusCode.UNIMPLEMENTED:
            return self._error(f"it does not serve the {self.service} protocol{self._what_it_is()}; check the configured addresses")
        if code == grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
            return self._error(f"the message is too large: {details}; raise searcher.shard_examples, so that there are fewer shards")
        if code == grpc.StatusCode.FAILED_PRECONDITION and TAKEN_OVER in details:
            return TakenOverError(f"{self.service} at {self.address}: {details}")
        what = f"{code.name.lower().replace('_', ' ')}: {details}".rstrip(": ")
        return self._error(f"{what}; {HINTS[code]}" if code in HINTS else what)

    def _what_it_is(self) -> str:
        """Ask whether it is the other of our services."""
        for service, stub in STUBS.items():
            try:
                info = stub(self._channel).GetInfo(jobs_pb2.GetInfoRequest(), timeout=2.0)
            except grpc.RpcError:
                continue
            return f": it is a {info.service or service}"
        return ""

    def _check_handshake(self, left_s: float) -> None:
        within_s = max(LEAST_HANDSHAKE_S, min(left_s, handshake.WITHIN_S))
        if found := handshake.fault(self.address, self._tls, within_s=within_s):
            raise self._error(found, SecurityError) from None

    def _error(self, what: str, kind: type[DaemonError] = DaemonError) -> DaemonError:
        return kind(f"{self.service} at {self.address}: {what}")


class _Silence:
    """Cancels `stream` when nothing was heard for `SILENCE_S`; a consumer that is as slow only makes the watch reconnect."""

    def __init__(self, stream: Any) -> None:
        self.fired = False
        self._stream, self._heard, self._over = stream, threading.Event(), False
        threading.Thread(target=self._listen, name="silence", daemon=True).start()

    def heard(self) -> None:
        self._heard.set()

    def stop(self) -> None:
        self._over = True
        self._heard.set()

    def _listen(self) -> None:
        while self._heard.wait(SILENCE_S):
            if self._over:
                return
            self._heard.clear()
        self.fired = True
        self._stream.cancel()
