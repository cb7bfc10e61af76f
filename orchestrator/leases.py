"""Who works on a run whose store many hosts reach: terms that are created once, and beats of the one who has the newest.

 terms/00002.json        who began term 2; created once, so of several orchestrators one has the term
 terms/00002-beat.json   a number that its owner raises every `BEAT_S` seconds, and whether it has ended
The file lock of a run's folder says at once that its owner on this host is there or gone. Of an owner elsewhere only the beats tell: if
none comes for `SILENCE_S` seconds, by the clock of who waits, it is taken for gone and the next term begins. Daemons refuse the old
term from then on; its owner, should it wake, finds the new one at its next beat and stops.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repsearch.errors import StoreError
from store.base import DocumentStore

TERMS = "terms"
BEAT_S = 10.0
SILENCE_S = 60.0
POLL_S = 2.0
_TOKEN = uuid.uuid4().hex


@dataclass(frozen=True)
class Watch:
    """How an owner elsewhere is waited for: whom to tell, and by which clock."""

    tell: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep


def free(store: DocumentStore, folder: Path, watch: Watch) -> int:
    """Return the newest term, whose owner is gone; 0 before the first. The lock of `folder` is held.

    Raises `StoreError` naming the owner while that is at work.
    """
    newest = newest_term(store)
    if newest:
        _await_silence(store, newest, folder, watch)
    return newest


def claim(store: DocumentStore, folder: Path, *, above: int, watch: Watch, known_free: int = -1) -> int:
    """Begin the next term of a run, above `above` and above all that were begun, and return it; the lock of `folder` is held.

    known_free: what `free` returned. Raises `StoreError` naming the owner of the newest term while that is at work, and if another
    orchestrator begins the term first.
    """
    newest = newest_term(store)
    if newest != known_free:
        newest = free(store, folder, watch)
    term = max(above, newest) + 1
    try:
        store.write_document(_path(term), {"owner": _owner(folder)}, create=True)
    except StoreError:
        if newest_term(store) < term:
            raise
        raise _in_use(folder, store.read_document(_path(term))["owner"], term) from None
    return term


def newest_term(store: DocumentStore) -> int:
    """Return the newest term that was begun; 0 before the first."""
    names = (name.removesuffix(".json") for name in store.documents(TERMS))
    return max((int(name) for name in names if name.isdecimal()), default=0)


@contextlib.contextmanager
def beating(store: DocumentStore, term: int, superseded: Callable[[str], None], *, every_s: float = BEAT_S) -> Iterator[None]:
    """Give beats of `term`; `superseded` is told, once, of an orchestrator that has begun a newer one."""
    ended = threading.Event()

    def beat() -> None:
        for number in range(1, 2**62):
            # A store that does not answer now may at the next beat; what the run itself asks of it says what is wrong.
            with contextlib.suppress(StoreError):
                store.write_document(_beat_path(term), {"beat": number, "token": _TOKEN, "ended": False}, create=False)
                if (newest := newest_term(store)) > term:
                    superseded(f"the run is taken over by {_who(store.read_document(_path(newest))['owner'], newest)}")
                    return
            if ended.wait(every_s):
                return

    thread = threading.Thread(target=beat, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(StoreError):
            store.write_document(_beat_path(term), {"beat": 0, "token": _TOKEN, "ended": True}, create=False)


def _await_silence(store: DocumentStore, term: int, folder: Path, watch: Watch) -> None:
    """Return when the owner of `term` is gone; raises `StoreError` as soon as it gives a beat."""
    owner = store.read_document(_path(term))["owner"]
    if owner.get("lock") == _lock(folder):
        return  # it held the file lock that is ours now
    first, began = _beat(store, term), watch.clock()
    if not first.get("ended"):
        watch.tell(f"the run was left by {_who(owner, term)}, without a word; waiting {SILENCE_S:g} s for a sign of it")
    while not first.get("ended") and watch.clock() - began < SILENCE_S:
        watch.pause(POLL_S)
        if (beat := _beat(store, term)) != first:
            if beat.get("ended"):
                return
            raise _in_use(folder, owner, term)


def _in_use(folder: Path, owner: dict[str, Any], term: int) -> StoreError:
    return StoreError(f"{folder}: the run is in use by {_who(owner, term)}; wait until it ends, or stop it and resume the run")


def _who(owner: dict[str, Any], term: int) -> str:
    return f"process {owner.get('pid', '?')} on host {owner.get('host', '?')}, in term {term}"


def _beat(store: DocumentStore, term: int) -> dict[str, Any]:
    path = _beat_path(term)
    return store.read_document(path) if path.rpartition("/")[2] in store.documents(TERMS) else {}


def _owner(folder: Path) -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "lock": _lock(folder), "token": _TOKEN}


def _lock(folder: Path) -> str:
    """Return what names the file lock of a run's folder among all machines, as long as this one is up."""
    from orchestrator.runs import LOCK_FILE

    try:
        boot, file = Path("/proc/sys/kernel/random/boot_id").read_text().strip(), (folder / LOCK_FILE).stat()
    except OSError:
        return uuid.uuid4().hex
    return f"{boot}/{file.st_dev}/{file.st_ino}"


def _path(term: int) -> str:
    return f"{TERMS}/{term:05d}.json"


def _beat_path(term: int) -> str:
    return f"{TERMS}/{term:05d}-beat.json"
