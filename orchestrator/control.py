"""How a run is steered from anywhere that sees its folder: requests as a file, and what the run waits for as another.

 <run>/request.json   what is asked for, and of which orchestrator; whoever it is meant for acts on it and removes it
       now.json       what the orchestrator waits for, with a beat every `BEAT_S`; there while it works on the run

Requests: "stop" ends the run when the jobs that run have committed, "stop_now" cancels them, "pause" begins no job until "go_on". A request
names the owner that the lock named, so that one that was left behind means nobody. Neither file counts for anything that is computed.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from orchestrator.oversight import Wait
from orchestrator.runs import holder_of
from repsearch.errors import StoppedError

REQUEST_FILE = "request.json"
NOW_FILE = "now.json"
POLL_S = 0.2
BEAT_S = 2.0


class Control:
    """Takes requests for the run in `folder`, which this process has locked, and says what is waited for; a context."""

    def __init__(self, folder: Path, tell: Callable[[str, str], None] = lambda event, text: None) -> None:
        self._folder, self._tell, self._us = folder, tell, holder_of(folder)
        self._wanted, self._since = "", 0.0
        self._waits: Sequence[Wait] = ()
        self._closed = threading.Event()
        self._beat, self._written, self._beaten = 0, "", 0.0
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._closed.set()
        self._thread.join()
        # Also what an orchestrator that was killed while it wrote, or whose disk was full, left of it.
        for path in (self._folder / NOW_FILE, *self._folder.glob(f"{NOW_FILE}.*.part")):
            path.unlink(missing_ok=True)

    def wanted(self) -> str:
        """What is asked for: "stop", "pause", or "" to go on; raises `StoppedError` for "stop_now"."""
        if self._wanted == "stop_now":
            raise stopped()
        return self._wanted

    def waits(self, waits: Sequence[Wait]) -> None:
        """Take note of what is waited for now."""
        self._waits = waits

    def _run(self) -> None:
        while not self._closed.wait(POLL_S):
            try:
                self._take()
                self._say()
            except OSError:
                # Its disk may be full: nothing that is computed depends on these files.
                continue

    def _take(self) -> None:
        path = self._folder / REQUEST_FILE
        request = read_json(path)
        if not request:
            return
        path.unlink(missing_ok=True)
        if request.get("of") != self._us or request.get("wanted") not in ("stop", "stop_now", "pause", "go_on"):
            return
        wanted = str(request["wanted"])
        self._wanted, self._since = wanted.replace("go_on", ""), time.monotonic()
        self._tell("asked", f"asked to {wanted.replace('_', ' ')} by {request.get('by', 'somebody')}")

    def _say(self) -> None:
        now, wall = time.monotonic(), time.time()
        waits = list(self._waits)
        if self._wanted == "pause":
            waits.append(
                Wait(who="orchestrator", what=f"`orchestrator resume {self._folder}`", since=self._since, note="the run is paused")
            )
        # Times on the wall for people; measured by the monotonic clock.
        said = [
            {**asdict(wait), "since": wall - (now - wait.since), "until": None if wait.until is None else wall + (wait.until - now)}
            for wait in waits
        ]
        text = json.dumps([self._wanted, [[wait.who, wait.what, wait.note] for wait in waits]])
        if text == self._written and now - self._beaten < BEAT_S:
            return
        self._beat, self._written, self._beaten = self._beat + 1, text, now
        write_json(self._folder / NOW_FILE, {"beat": self._beat, "time": wall, "wanted": self._wanted, "waits": said})


def stopped() -> StoppedError:
    """Return the end of a run that was asked for."""
    return StoppedError("the run was stopped on request")


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a small file that appears whole."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(document) + "\n")
    part.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Return what the file says, {} if it is not there or not whole."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
