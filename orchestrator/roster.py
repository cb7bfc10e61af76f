"""Which daemons of a run are lost, since when, and whether they are back.

A lost daemon is asked again every `PROBE_S` on a thread of its own until it can be used (it answers, has stopped what it did for us, and
holds our data), also while the run does something else; whoever listens is told.

    working --lose--> lost --the probe succeeds--> working
                        +----the probe raises GoneError--> lost for good
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from orchestrator.attempts import TakenOverError
from repsearch.errors import DaemonError, RepSearchError, SecurityError

PROBE_S = 1.0
"""Seconds between two tries to reach a lost daemon; a try itself is bounded by the client."""


class Named(Protocol):
    """A daemon as the roster knows it."""

    @property
    def address(self) -> str: ...


class GoneError(DaemonError):
    """The daemon cannot come back: a process of ours that ends again and again."""


class StartedAnewError(DaemonError):
    """The daemon's process, one of ours, had ended and was started anew; it will answer."""


@dataclass
class Lost:
    """A lost daemon: why, since when (monotonic), and whether for good."""

    daemon: Any
    why: str
    since: float = field(default_factory=time.monotonic)
    for_good: bool = False


class Roster:
    """The lost daemons of a run. `rejoin(daemon)` makes one usable again or raises `RepSearchError`; without it none comes back.

    report: what to do with news, an event and a line for people.
    """

    def __init__(self, rejoin: Callable[[Any], None] | None = None, report: Callable[[str, str], None] = lambda event, text: None) -> None:
        self._rejoin, self._report = rejoin, report
        self._lock = threading.Lock()
        self._lost: dict[str, Lost] = {}
        self._listeners: list[Callable[[Any], None]] = []
        self._closed = threading.Event()

    def close(self) -> None:
        """Ask no daemon any more, and report nothing."""
        with self._lock:
            self._closed.set()

    def lose(self, daemon: Named, why: str) -> None:
        """Take note that `daemon` is lost."""
        with self._lock:
            if daemon.address in self._lost:
                return
            lost = self._lost[daemon.address] = Lost(daemon, why, for_good=self._rejoin is None)
        self._report("daemon_lost", why)
        if not lost.for_good:
            threading.Thread(target=self._probe, args=[lost], name=f"probe {daemon.address}", daemon=True).start()

    def is_lost(self, daemon: Named) -> bool:
        """Whether `daemon` is lost now."""
        with self._lock:
            return daemon.address in self._lost

    def lost(self, daemons: Any) -> list[Lost]:
        """Return those of `daemons` that are lost."""
        with self._lock:
            return [self._lost[daemon.address] for daemon in daemons if daemon.address in self._lost]

    @contextmanager
    def listening(self, back: Callable[[Any], None]) -> Iterator[None]:
        """Call `back` for every daemon that is back, on the thread that found out, within the context."""
        with self._lock:
            self._listeners.append(back)
        try:
            yield
        finally:
            with self._lock:
                self._listeners.remove(back)

    def _tell(self, event: str, text: str) -> None:
        with self._lock:
            if not self._closed.is_set():
                self._report(event, text)

    def _probe(self, lost: Lost) -> None:
        assert self._rejoin is not None
        restarted = ""
        while not self._closed.is_set():
            try:
                self._rejoin(lost.daemon)
            except (GoneError, TakenOverError, SecurityError) as error:
                lost.why, lost.for_good = str(error), True
                return
            except StartedAnewError as error:
                lost.why = restarted = str(error)
                self._tell("daemon_restarted", restarted)
                self._closed.wait(PROBE_S)
                continue
            except RepSearchError as error:
                # While it starts, it does not answer, of which this is the reason.
                lost.why = f"{restarted}; {error}" if restarted else str(error)
                self._closed.wait(PROBE_S)
                continue
            with self._lock:
                if self._closed.is_set():
                    return
                del self._lost[lost.daemon.address]
                listeners = list(self._listeners)
                # With the lock held: whoever is told may be gone once we are closed.
                self._report("daemon_back", f"{lost.daemon.address} is back after {time.monotonic() - lost.since:.0f} s, and used again")
            for back in listeners:
                back(lost.daemon)
            return
