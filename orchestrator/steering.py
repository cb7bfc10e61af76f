"""The other end of `control`: ask the orchestrator of a run for something, and wait until it has heard."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

from orchestrator.control import BEAT_S, NOW_FILE, REQUEST_FILE, read_json, write_json
from orchestrator.runs import BASELINE, holder_of, owner
from repsearch.errors import StoreError

HEARD_S = 15.0
"""Seconds that an orchestrator has to take a request."""
PAUSE_S = 0.05


def ask(folder: Path, wanted: str) -> str:
    """Ask whoever runs `folder`, or its baseline, to "stop", "stop_now", "pause" or "go_on"; return who it is.

    Raises `StoreError` if nobody runs it, or who does has not heard within `HEARD_S`.
    """
    folder = _run_of(folder)
    who, path = working_on(folder), folder / REQUEST_FILE
    if who is None:
        raise StoreError(
            f"{folder}: nobody runs it, so there is nothing to {wanted.partition('_')[0]}; `orchestrator status` says how it ended"
        )
    name = f"process {who.get('pid', '?')} on host {who.get('host', '?')}"
    write_json(path, {"wanted": wanted, "of": who, "by": f"process {os.getpid()} on host {socket.gethostname()}"})
    deadline = time.monotonic() + HEARD_S
    while path.exists():
        if time.monotonic() > deadline:
            path.unlink(missing_ok=True)
            raise StoreError(
                f"{folder}: {name} has not heard within {HEARD_S:g} s; is it stopped (SIGCONT lets it go on), or its host gone?"
            )
        time.sleep(PAUSE_S)
    return name


def is_paused(folder: Path) -> bool:
    """Return whether the run in `folder`, or its baseline, is paused by request."""
    folder = _run_of(folder)
    return read_json(folder / NOW_FILE).get("wanted") == "pause" and working_on(folder) is not None


def working_on(folder: Path) -> dict[str, Any] | None:
    """Return the orchestrator that works on the run, or None: who holds its lock or, where locks do not reach other hosts, who beats."""
    if (holder := owner(folder)) is not None:
        return holder
    who = holder_of(folder)
    if who.get("host") == socket.gethostname() or not (beat := read_json(folder / NOW_FILE).get("beat")):
        return None
    deadline = time.monotonic() + 2 * BEAT_S + 1
    while time.monotonic() < deadline:
        if read_json(folder / NOW_FILE).get("beat", beat) != beat:
            return who
        time.sleep(PAUSE_S)
    return None


def _run_of(folder: Path) -> Path:
    """Return the folder of the baseline while that is what goes on."""
    baseline = folder.with_name(folder.name + BASELINE)
    return baseline if baseline.is_dir() and owner(baseline) is not None else folder
