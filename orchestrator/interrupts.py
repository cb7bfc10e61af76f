"""Ctrl-C and SIGTERM: the first stops the run in order, the second stops at once.

Inside `deferred`, the first signal becomes a `KeyboardInterrupt` only where the code says that it waits (`waiting`), so that it never
cuts a write in two. Process-wide, as signals are; for the main thread alone.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 130


class _State:
    signals = 0
    deferred = False


_state = _State()


@contextmanager
def handled() -> Iterator[None]:
    """Handle SIGINT and SIGTERM within the context."""
    _state.signals, _state.deferred = 0, False
    before = {number: signal.signal(number, _on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def deferred() -> Iterator[None]:
    """Let the first signal wait for `waiting`, or for the end of the context."""
    outer, _state.deferred = _state.deferred, True
    try:
        yield
    finally:
        _state.deferred = outer


@contextmanager
def waiting() -> Iterator[None]:
    """Let a signal, also one that came before, raise `KeyboardInterrupt` here."""
    outer, _state.deferred = _state.deferred, False
    try:
        check()
        yield
    finally:
        _state.deferred = outer


def check() -> None:
    """Raise `KeyboardInterrupt` if a signal has come that was not raised yet."""
    if _state.signals == 1:
        _state.signals = 2
        raise KeyboardInterrupt


def _on_signal(number: int, frame: FrameType | None) -> None:
    if _state.signals == 0:
        _state.signals = 1
        if not _state.deferred:
            check()
        else:
            _say("stopping; once more to stop at once")
        return
    _say("stopped at once; local daemons end by themselves, and the run can be resumed")
    # No cleaning up: the pipes to the local daemons close with the process, and they end with that.
    os._exit(EXIT_CODE)


def _say(text: str) -> None:
    # Not print(): a signal may come while the stream's buffer is being written.
    os.write(2, f"\n{text}\n".encode())
