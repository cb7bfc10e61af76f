from repsearch.rpc.v1 import jobs_pb2 as _jobs_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Command(_message.Message):
    __slots__ = ("run", "cancel", "item")
    RUN_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    run: RunJob
    cancel: str
    item: NextItem
    def __init__(self, run: _Optional[_Union[RunJob, _Mapping]] = ..., cancel: _Optional[str] = ..., item: _Optional[_Union[NextItem, _Mapping]] = ...) -> None: ...

class NextItem(_message.Message):
    __slots__ = ("job_id", "item")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    item: _jobs_pb2.Item
    def __init__(self, job_id: _Optional[str] = ..., item: _Optional[_Union[_jobs_pb2.Item, _Mapping]] = ...) -> None: ...

class RunJob(_message.Message):
    __slots__ = ("job_id", "request")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    request: _jobs_pb2.StartRequest
    def __init__(self, job_id: _Optional[str] = ..., request: _Optional[_Union[_jobs_pb2.StartRequest, _Mapping]] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("job_id", "hello", "refused", "progress", "points", "outcome", "item_done")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    ITEM_DONE_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    hello: Hello
    refused: _jobs_pb2.Failure
    progress: _jobs_pb2.Progress
    points: _jobs_pb2.Points
    outcome: Outcome
    item_done: _jobs_pb2.ItemDone
    def __init__(self, job_id: _Optional[str] = ..., hello: _Optional[_Union[Hello, _Mapping]] = ..., refused: _Optional[_Union[_jobs_pb2.Failure, _Mapping]] = ..., progress: _Optional[_Union[_jobs_pb2.Progress, _Mapping]] = ..., points: _Optional[_Union[_jobs_pb2.Points, _Mapping]] = ..., outcome: _Optional[_Union[Outcome, _Mapping]] = ..., item_done: _Optional[_Union[_jobs_pb2.ItemDone, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("pid", "device", "device_name")
    PID_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_NAME_FIELD_NUMBER: _ClassVar[int]
    pid: int
    device: str
    device_name: str
    def __init__(self, pid: _Optional[int] = ..., device: _Optional[str] = ..., device_name: _Optional[str] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("state", "failure", "result", "dataset_digest")
    STATE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    DATASET_DIGEST_FIELD_NUMBER: _ClassVar[int]
    state: _jobs_pb2.JobState
    failure: _jobs_pb2.Failure
    result: _jobs_pb2.Reference
    dataset_digest: str
    def __init__(self, state: _Optional[_Union[_jobs_pb2.JobState, str]] = ..., failure: _Optional[_Union[_jobs_pb2.Failure, _Mapping]] = ..., result: _Optional[_Union[_jobs_pb2.Reference, _Mapping]] = ..., dataset_digest: _Optional[str] = ...) -> None: ...
