from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JobState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_STATE_UNSPECIFIED: _ClassVar[JobState]
    JOB_STATE_QUEUED: _ClassVar[JobState]
    JOB_STATE_RUNNING: _ClassVar[JobState]
    JOB_STATE_SUCCEEDED: _ClassVar[JobState]
    JOB_STATE_FAILED: _ClassVar[JobState]
    JOB_STATE_CANCELLED: _ClassVar[JobState]
JOB_STATE_UNSPECIFIED: JobState
JOB_STATE_QUEUED: JobState
JOB_STATE_RUNNING: JobState
JOB_STATE_SUCCEEDED: JobState
JOB_STATE_FAILED: JobState
JOB_STATE_CANCELLED: JobState

class GetInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Info(_message.Message):
    __slots__ = ("service", "protocol_version", "package_version", "incarnation", "device", "device_name", "threads", "store_root", "draining", "unfinished_jobs", "libraries", "pid")
    class LibrariesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_VERSION_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_NAME_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    STORE_ROOT_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    UNFINISHED_JOBS_FIELD_NUMBER: _ClassVar[int]
    LIBRARIES_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    service: str
    protocol_version: int
    package_version: str
    incarnation: str
    device: str
    device_name: str
    threads: int
    store_root: str
    draining: bool
    unfinished_jobs: _containers.RepeatedScalarFieldContainer[str]
    libraries: _containers.ScalarMap[str, str]
    pid: int
    def __init__(self, service: _Optional[str] = ..., protocol_version: _Optional[int] = ..., package_version: _Optional[str] = ..., incarnation: _Optional[str] = ..., device: _Optional[str] = ..., device_name: _Optional[str] = ..., threads: _Optional[int] = ..., store_root: _Optional[str] = ..., draining: _Optional[bool] = ..., unfinished_jobs: _Optional[_Iterable[str]] = ..., libraries: _Optional[_Mapping[str, str]] = ..., pid: _Optional[int] = ...) -> None: ...

class StartRequest(_message.Message):
    __slots__ = ("request_id", "run_id", "term", "run_path", "config_json", "dataset_digest", "check", "initialise", "search", "learn", "stream_search", "stream_learn")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    RUN_PATH_FIELD_NUMBER: _ClassVar[int]
    CONFIG_JSON_FIELD_NUMBER: _ClassVar[int]
    DATASET_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CHECK_FIELD_NUMBER: _ClassVar[int]
    INITIALISE_FIELD_NUMBER: _ClassVar[int]
    SEARCH_FIELD_NUMBER: _ClassVar[int]
    LEARN_FIELD_NUMBER: _ClassVar[int]
    STREAM_SEARCH_FIELD_NUMBER: _ClassVar[int]
    STREAM_LEARN_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    run_id: str
    term: int
    run_path: str
    config_json: str
    dataset_digest: str
    check: CheckSpec
    initialise: InitialiseSpec
    search: SearchSpec
    learn: LearnSpec
    stream_search: StreamSearchSpec
    stream_learn: StreamLearnSpec
    def __init__(self, request_id: _Optional[str] = ..., run_id: _Optional[str] = ..., term: _Optional[int] = ..., run_path: _Optional[str] = ..., config_json: _Optional[str] = ..., dataset_digest: _Optional[str] = ..., check: _Optional[_Union[CheckSpec, _Mapping]] = ..., initialise: _Optional[_Union[InitialiseSpec, _Mapping]] = ..., search: _Optional[_Union[SearchSpec, _Mapping]] = ..., learn: _Optional[_Union[LearnSpec, _Mapping]] = ..., stream_search: _Optional[_Union[StreamSearchSpec, _Mapping]] = ..., stream_learn: _Optional[_Union[StreamLearnSpec, _Mapping]] = ...) -> None: ...

class CheckSpec(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InitialiseSpec(_message.Message):
    __slots__ = ("output_path",)
    OUTPUT_PATH_FIELD_NUMBER: _ClassVar[int]
    output_path: str
    def __init__(self, output_path: _Optional[str] = ...) -> None: ...

class Reference(_message.Message):
    __slots__ = ("path", "digest")
    PATH_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    path: str
    digest: str
    def __init__(self, path: _Optional[str] = ..., digest: _Optional[str] = ...) -> None: ...

class SearchSpec(_message.Message):
    __slots__ = ("round", "shard", "attempt", "first", "count", "network", "trained", "output_path", "archive")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    TRAINED_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_PATH_FIELD_NUMBER: _ClassVar[int]
    ARCHIVE_FIELD_NUMBER: _ClassVar[int]
    round: int
    shard: int
    attempt: int
    first: int
    count: int
    network: Reference
    trained: bool
    output_path: str
    archive: _containers.RepeatedCompositeFieldContainer[Reference]
    def __init__(self, round: _Optional[int] = ..., shard: _Optional[int] = ..., attempt: _Optional[int] = ..., first: _Optional[int] = ..., count: _Optional[int] = ..., network: _Optional[_Union[Reference, _Mapping]] = ..., trained: _Optional[bool] = ..., output_path: _Optional[str] = ..., archive: _Optional[_Iterable[_Union[Reference, _Mapping]]] = ...) -> None: ...

class LearnSpec(_message.Message):
    __slots__ = ("round", "attempt", "shards", "initial_network", "output_path", "checkpoint_path", "epochs", "digest", "searched_network", "first", "count", "state", "state_path", "unevaluated", "fitness_alone")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    INITIAL_NETWORK_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_PATH_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_PATH_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SEARCHED_NETWORK_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STATE_PATH_FIELD_NUMBER: _ClassVar[int]
    UNEVALUATED_FIELD_NUMBER: _ClassVar[int]
    FITNESS_ALONE_FIELD_NUMBER: _ClassVar[int]
    round: int
    attempt: int
    shards: _containers.RepeatedCompositeFieldContainer[Reference]
    initial_network: Reference
    output_path: str
    checkpoint_path: str
    epochs: int
    digest: str
    searched_network: str
    first: int
    count: int
    state: Reference
    state_path: str
    unevaluated: bool
    fitness_alone: bool
    def __init__(self, round: _Optional[int] = ..., attempt: _Optional[int] = ..., shards: _Optional[_Iterable[_Union[Reference, _Mapping]]] = ..., initial_network: _Optional[_Union[Reference, _Mapping]] = ..., output_path: _Optional[str] = ..., checkpoint_path: _Optional[str] = ..., epochs: _Optional[int] = ..., digest: _Optional[str] = ..., searched_network: _Optional[str] = ..., first: _Optional[int] = ..., count: _Optional[int] = ..., state: _Optional[_Union[Reference, _Mapping]] = ..., state_path: _Optional[str] = ..., unevaluated: _Optional[bool] = ..., fitness_alone: _Optional[bool] = ...) -> None: ...

class StreamSearchSpec(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StreamLearnSpec(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: Reference
    def __init__(self, state: _Optional[_Union[Reference, _Mapping]] = ...) -> None: ...

class PushRequest(_message.Message):
    __slots__ = ("job_id", "term", "sequence", "item")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    term: int
    sequence: int
    item: Item
    def __init__(self, job_id: _Optional[str] = ..., term: _Optional[int] = ..., sequence: _Optional[int] = ..., item: _Optional[_Union[Item, _Mapping]] = ...) -> None: ...

class Item(_message.Message):
    __slots__ = ("search", "learn", "end")
    SEARCH_FIELD_NUMBER: _ClassVar[int]
    LEARN_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    search: SearchSpec
    learn: LearnSpec
    end: End
    def __init__(self, search: _Optional[_Union[SearchSpec, _Mapping]] = ..., learn: _Optional[_Union[LearnSpec, _Mapping]] = ..., end: _Optional[_Union[End, _Mapping]] = ...) -> None: ...

class End(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ItemDone(_message.Message):
    __slots__ = ("sequence", "result", "state", "waited", "inside", "read", "work", "write", "evaluations", "figures", "layers")
    class FiguresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    WAITED_FIELD_NUMBER: _ClassVar[int]
    INSIDE_FIELD_NUMBER: _ClassVar[int]
    READ_FIELD_NUMBER: _ClassVar[int]
    WORK_FIELD_NUMBER: _ClassVar[int]
    WRITE_FIELD_NUMBER: _ClassVar[int]
    EVALUATIONS_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    result: Reference
    state: Reference
    waited: float
    inside: float
    read: float
    work: float
    write: float
    evaluations: int
    figures: _containers.ScalarMap[str, float]
    layers: _containers.RepeatedCompositeFieldContainer[LayerState]
    def __init__(self, sequence: _Optional[int] = ..., result: _Optional[_Union[Reference, _Mapping]] = ..., state: _Optional[_Union[Reference, _Mapping]] = ..., waited: _Optional[float] = ..., inside: _Optional[float] = ..., read: _Optional[float] = ..., work: _Optional[float] = ..., write: _Optional[float] = ..., evaluations: _Optional[int] = ..., figures: _Optional[_Mapping[str, float]] = ..., layers: _Optional[_Iterable[_Union[LayerState, _Mapping]]] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("job_id", "from_sequence")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    FROM_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    from_sequence: int
    def __init__(self, job_id: _Optional[str] = ..., from_sequence: _Optional[int] = ...) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class CancelRequest(_message.Message):
    __slots__ = ("job_id", "term")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    term: int
    def __init__(self, job_id: _Optional[str] = ..., term: _Optional[int] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("kind", "message", "traceback")
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TRACEBACK_FIELD_NUMBER: _ClassVar[int]
    kind: str
    message: str
    traceback: str
    def __init__(self, kind: _Optional[str] = ..., message: _Optional[str] = ..., traceback: _Optional[str] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("job_id", "request_id", "run_id", "term", "state", "progress", "failure", "result", "dataset_digest", "last_sequence", "incarnation")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    DATASET_DIGEST_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    request_id: str
    run_id: str
    term: int
    state: JobState
    progress: Progress
    failure: Failure
    result: Reference
    dataset_digest: str
    last_sequence: int
    incarnation: str
    def __init__(self, job_id: _Optional[str] = ..., request_id: _Optional[str] = ..., run_id: _Optional[str] = ..., term: _Optional[int] = ..., state: _Optional[_Union[JobState, str]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., result: _Optional[_Union[Reference, _Mapping]] = ..., dataset_digest: _Optional[str] = ..., last_sequence: _Optional[int] = ..., incarnation: _Optional[str] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("counter", "done", "total", "unit", "text", "search")
    COUNTER_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SEARCH_FIELD_NUMBER: _ClassVar[int]
    counter: int
    done: int
    total: int
    unit: str
    text: str
    search: SearchState
    def __init__(self, counter: _Optional[int] = ..., done: _Optional[int] = ..., total: _Optional[int] = ..., unit: _Optional[str] = ..., text: _Optional[str] = ..., search: _Optional[_Union[SearchState, _Mapping]] = ...) -> None: ...

class SearchState(_message.Message):
    __slots__ = ("layers", "evaluations", "ahead", "layer", "generation", "generations")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    EVALUATIONS_FIELD_NUMBER: _ClassVar[int]
    AHEAD_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    GENERATIONS_FIELD_NUMBER: _ClassVar[int]
    layers: _containers.RepeatedCompositeFieldContainer[LayerState]
    evaluations: int
    ahead: float
    layer: str
    generation: int
    generations: int
    def __init__(self, layers: _Optional[_Iterable[_Union[LayerState, _Mapping]]] = ..., evaluations: _Optional[int] = ..., ahead: _Optional[float] = ..., layer: _Optional[str] = ..., generation: _Optional[int] = ..., generations: _Optional[int] = ...) -> None: ...

class LayerState(_message.Message):
    __slots__ = ("name", "cross_entropy", "solved")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CROSS_ENTROPY_FIELD_NUMBER: _ClassVar[int]
    SOLVED_FIELD_NUMBER: _ClassVar[int]
    name: str
    cross_entropy: _containers.RepeatedScalarFieldContainer[float]
    solved: float
    def __init__(self, name: _Optional[str] = ..., cross_entropy: _Optional[_Iterable[float]] = ..., solved: _Optional[float] = ...) -> None: ...

class Point(_message.Message):
    __slots__ = ("key", "step", "value")
    KEY_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    key: str
    step: int
    value: float
    def __init__(self, key: _Optional[str] = ..., step: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...

class Points(_message.Message):
    __slots__ = ("points",)
    POINTS_FIELD_NUMBER: _ClassVar[int]
    points: _containers.RepeatedCompositeFieldContainer[Point]
    def __init__(self, points: _Optional[_Iterable[_Union[Point, _Mapping]]] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("sequence", "job_id", "time_ms", "points", "state", "heartbeat", "item_done")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    ITEM_DONE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    job_id: str
    time_ms: int
    points: Points
    state: Job
    heartbeat: Progress
    item_done: ItemDone
    def __init__(self, sequence: _Optional[int] = ..., job_id: _Optional[str] = ..., time_ms: _Optional[int] = ..., points: _Optional[_Union[Points, _Mapping]] = ..., state: _Optional[_Union[Job, _Mapping]] = ..., heartbeat: _Optional[_Union[Progress, _Mapping]] = ..., item_done: _Optional[_Union[ItemDone, _Mapping]] = ...) -> None: ...
