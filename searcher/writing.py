"""Writing beside searching: a thread of its own appends pieces of a shard while the next ones are searched."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import numpy as np

from store import GroupWriter, Reference

PENDING = 2
"""Pieces that may wait; one more makes the search wait, so that memory stays bounded where the disk is slower."""


class Background:
    """A `GroupWriter` that hands pieces to `writer` on another thread.

    A failure of writing is raised by the next call. Leaving the context ends the thread; what was not begun by then is not written.
    """

    def __init__(self, writer: GroupWriter) -> None:
        self._writer = writer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shard-writer")
        self._appends: deque[Future[None]] = deque()

    def append(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Have further rows of every array written; the arrays are not to change any more."""
        while self._appends and (self._appends[0].done() or len(self._appends) > PENDING):
            self._appends.popleft().result()
        self._appends.append(self._thread.submit(self._writer.append, arrays))

    def commit(self, attributes: Mapping[str, Any]) -> Reference:
        """Wait until every piece is written and make the group readable."""
        while self._appends:
            self._appends.popleft().result()
        return self._writer.commit(attributes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._writer.__exit__(kind, error, traceback)
