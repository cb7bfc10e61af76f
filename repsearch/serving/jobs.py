"""What a program that serves jobs implements: a function from a request and a context to a result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from repsearch.rpc.v1 import jobs_pb2
    from repsearch.serving.places import Place


class JobCancelled(Exception):  # noqa: N818 (an outcome, not an error)
    """The job was cancelled; raised by `JobContext.check`, to be let through."""


@dataclass(frozen=True)
class Arrival:
    """An item of a stream job; `time` (of `time.monotonic`) is when it came."""

    sequence: int
    item: jobs_pb2.Item
    time: float


class JobContext(Protocol):
    """What a job may use of the process it runs in.

    `device` is a torch device name, `threads` the number of CPU threads to use, `store_root` the place that holds all runs.
    """

    @property
    def device(self) -> str: ...

    @property
    def threads(self) -> int: ...

    @property
    def store_root(self) -> Place: ...

    def progress(self, done: int, total: int, *, unit: str, text: str = "", search: jobs_pb2.SearchState | None = None) -> None:
        """Report that `done` of `total` units are done; call it whenever work advances, it is cheap. Only the newest report is kept."""

    def points(self, points: Sequence[tuple[str, int, float]]) -> None:
        """Report points of curves: key, step, value. They are kept until the job is forgotten, so at most `MAX_POINTS` a job."""

    def check(self) -> None:
        """Raise `JobCancelled` if the job was cancelled; call it at every place where stopping is safe."""

    def items(self) -> Iterator[Arrival]:
        """Yield the items of a stream job as they come, up to the end; raises `JobCancelled` also while it waits."""

    def item_done(self, done: jobs_pb2.ItemDone) -> None:
        """Tell that an item is done."""


@dataclass(frozen=True)
class JobResult:
    """What a job leaves: the path and digest of the group it wrote, if any, and the digest of the dataset it used."""

    path: str = ""
    digest: str = ""
    dataset_digest: str = ""


JobFunction = Callable[["jobs_pb2.StartRequest", JobContext], JobResult]
Service = Literal["searcher", "learner"]
MAX_POINTS = 100_000
