"""Memory that runs out while a job runs: which errors mean that, and the message that says what to lower."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from repsearch.config import LearnConfig
from repsearch.errors import JobError

_WORDS = ("not enough memory", "can't allocate memory", "cannot allocate memory", "out of memory")
"""What torch says in a plain RuntimeError: its allocator on CPU has no class of its own for it."""
_BYTES = re.compile(r"allocate (\d+) bytes")


@contextmanager
def explained(what: str, way_out: str) -> Iterator[None]:
    """Raise, for memory that runs out inside, a `JobError` that says `what` was being done and the `way_out`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        raise JobError(f"memory ran out {what} ({_sizes(error)}); {way_out}") from None


def is_shortage(error: BaseException) -> bool:
    """Return whether `error` says that memory ran out."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(words in str(error).lower() for words in _WORDS)


def smaller_steps(learn: LearnConfig) -> str:
    """Return the way out for a training step that does not fit."""
    if learn.batch_size > 2:
        return f"lower learn.batch_size from {learn.batch_size} to {max(2, learn.batch_size // 2)}, which halves what a step takes"
    return "take a network of smaller width"


def fewer_targets(whole_bytes: int) -> str:
    """Return the way out for targets that do not fit."""
    return (
        f"they take {whole_bytes / 1e6:,.0f} MB: set learn.memory_mb to {whole_bytes / 2e6:,.0f} or less, so that they are read when they "
        "are needed"
    )


def _sizes(error: BaseException) -> str:
    asked = _BYTES.search(str(error))
    if isinstance(error, torch.OutOfMemoryError) or not asked:
        return (str(error).splitlines() or ["no more is said"])[0]
    return f"{int(asked[1]) / 1e6:,.0f} MB more were asked for, {psutil.virtual_memory().available / 1e6:,.0f} MB are free"
