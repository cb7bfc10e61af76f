"""RPC handlers called as gRPC calls them, without a network: with bytes, and with messages made from the descriptors."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message
from hypothesis import strategies as st

from repsearch.rpc.v1 import jobs_pb2
from repsearch.serving.servicer import CODES, JobServicer, Streams
from repsearch.serving.table import KEEP_JOBS, QUEUE_LIMIT, Table
from repsearch.serving.terms import KEEP_RUNS

REQUESTS: dict[str, type[Message]] = {
    "GetInfo": jobs_pb2.GetInfoRequest,
    "Start": jobs_pb2.StartRequest,
    "Get": jobs_pb2.GetRequest,
    "Cancel": jobs_pb2.CancelRequest,
    "Push": jobs_pb2.PushRequest,
    "Watch": jobs_pb2.WatchRequest,
}
METHODS = list(REQUESTS)
REFUSED = set(CODES.values())


class Aborted(Exception):  # noqa: N818 (an answer)
    """The call ended with a status."""


class Call:
    """What a handler sees of its call; `end` tells that the client has gone."""

    def __init__(self) -> None:
        self.code = grpc.StatusCode.OK
        self._gone: list[Callable[[], None]] = []

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        assert details and len(details) < 4096
        self.code = code
        raise Aborted(details)

    def add_callback(self, callback: Callable[[], None]) -> bool:
        self._gone.append(callback)
        return True

    def end(self) -> None:
        for callback in self._gone:
            callback()


class Handlers:
    """The handlers of a service over a table whose jobs never run; `known` are ids of jobs, for messages to name."""

    def __init__(self, service: str = "searcher") -> None:
        self.root = Path(tempfile.mkdtemp(prefix="repsearch-fuzz-"))
        nothing: Any = lambda *_: None  # noqa: E731
        self.table = Table("incarnation", on_queue=nothing, on_cancel=nothing, on_idle=nothing)
        self.servicer = JobServicer(service, self.root, self.table, lambda: jobs_pb2.Info(service=service), Streams())

    def call(self, method: str, body: bytes) -> grpc.StatusCode:
        """Call `method` with a message of these bytes; return the status, which is one that says what is wrong."""
        try:
            request = REQUESTS[method].FromString(body)
        except DecodeError:
            return grpc.StatusCode.INTERNAL  # gRPC's answer; the handler is not called
        return self.send(method, request)

    def send(self, method: str, request: Message) -> grpc.StatusCode:
        """Call `method`; return the status. Anything but an answer or a refusal is raised."""
        call = Call()
        try:
            answer = getattr(self.servicer, method)(request, call)
            if method == "Watch":
                for _ in answer:
                    call.end()
        except Aborted:
            assert call.code in REFUSED
        self.check_growth()
        return call.code

    def check_growth(self) -> None:
        """Fail if the table holds more than it says it does."""
        assert len(self.table._records) <= KEEP_JOBS + QUEUE_LIMIT + 1
        assert len(self.table._requests) == len(self.table._records)
        assert len(self.table._queue) <= QUEUE_LIMIT
        assert len(self.table._terms) <= KEEP_RUNS

    def job(self) -> str:
        """Return the id of a running stream job, started if there is none."""
        if self.table.running() is None:
            self.table.drain()
            self.table._draining = False
            start = jobs_pb2.StartRequest(request_id="known", run_id="known", term=1, run_path="known")
            start.stream_search.SetInParent()
            self.servicer.Start(start, Call())
            self.table.take()
        running = self.table.running()
        assert running is not None
        return running


NAMES = st.sampled_from(["", "run", "known", "a/b", "../up", "/etc/passwd", "s3://b/k", "a\0b", "x" * 2000, "link/../..", "é\u202e", "."])
TEXTS = st.one_of(NAMES, st.text(max_size=40))
CONFIGS = st.one_of(
    st.sampled_from(
        ["", "{}", "[" * 100, '{"a":' * 40 + "1" + "}" * 40, "nope", "[" * 31 + "]" * 31, '"\\"[[[["', "1" * 5000, "{" * 10**6]
    ),
    st.text(max_size=40),
)
NUMBERS = {
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1) | st.integers(0, 3),
    FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1) | st.integers(0, 3),
    FieldDescriptor.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_DOUBLE: st.floats(),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
}


def messages(descriptor: Descriptor, job_ids: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Return a strategy of the fields of a message, each there or not; of a `oneof` any number, of which the last one stays."""
    return st.fixed_dictionaries({}, optional={field.name: _values(field, job_ids) for field in descriptor.fields})


def _values(field: FieldDescriptor, job_ids: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        one: st.SearchStrategy[Any] = messages(field.message_type, job_ids)
    elif field.name == "job_id":
        one = job_ids | TEXTS
    elif field.name == "config_json":
        one = CONFIGS
    elif field.type == FieldDescriptor.TYPE_STRING:
        one = TEXTS
    else:
        one = NUMBERS[field.type]
    return st.lists(one, max_size=3) if field.is_repeated else one


def built(kind: type[Message], fields: dict[str, Any]) -> Message:
    """Return the message with these fields."""
    return kind(**{name: _message(kind.DESCRIPTOR.fields_by_name[name], value) for name, value in fields.items()})


def _message(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is None:
        return value
    kind = field.message_type._concrete_class
    return [built(kind, each) for each in value] if field.is_repeated else built(kind, value)
