"""Who works on a run whose store many hosts reach: one at a time, and nobody takes a term twice."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from orchestrator import leases
from orchestrator.leases import SILENCE_S, Watch, beating, claim, newest_term
from orchestrator.runs import RunLock
from repsearch.errors import StoreError
from store import MemoryStore, Store
from tests.late_files import Clock


def folder(root: Path, host: str) -> Path:
    """The run's folder on `host`, each of which has a file lock of its own."""
    place = root / host
    place.mkdir(exist_ok=True)
    with RunLock(place):
        return place


def on(root: Path, store: Store, host: str, clock: Clock, *, above: int = 0, told: list[str] | None = None) -> int:
    watch = Watch((told if told is not None else []).append, clock.time, clock.pause)
    return claim(store, folder(root, host), above=above, watch=watch)


def test_terms_grow_and_are_above_those_of_the_folder(tmp_path: Path) -> None:
    store, clock = MemoryStore(), Clock()
    assert [on(tmp_path, store, "a", clock), on(tmp_path, store, "a", clock), on(tmp_path, store, "a", clock, above=7)] == [1, 2, 8]
    assert newest_term(store) == 8
    assert clock.now == 0, "the file lock says that the owner on this host is gone"


def test_an_owner_that_ended_is_not_waited_for(tmp_path: Path) -> None:
    store, clock = MemoryStore(), Clock()
    with beating(store, on(tmp_path, store, "a", clock), pytest.fail):
        pass
    assert on(tmp_path, store, "b", clock) == 2
    assert clock.now == 0


@pytest.mark.fault(8)
def test_an_owner_at_work_is_named(tmp_path: Path) -> None:
    store, clock = MemoryStore(), Clock()
    term = on(tmp_path, store, "a", clock)
    number = 0

    def beat(seconds: float) -> None:
        nonlocal number
        number += 1
        clock.pause(seconds)
        store.write_document(f"terms/{term:05d}-beat.json", {"beat": number, "ended": False}, create=False)

    with pytest.raises(StoreError, match=r"in use by process \d+ on host \S+, in term 1; wait until it ends"):
        claim(store, folder(tmp_path, "b"), above=0, watch=Watch(lambda text: None, clock.time, beat))
    assert newest_term(store) == 1


@pytest.mark.fault(7)
def test_an_owner_without_a_word_is_waited_for_in_bounded_time_and_then_stops(tmp_path: Path) -> None:
    store, clock, told = MemoryStore(), Clock(), list[str]()
    term = on(tmp_path, store, "a", clock)
    store.write_document(f"terms/{term:05d}-beat.json", {"beat": 4, "ended": False}, create=False)
    assert on(tmp_path, store, "b", clock, told=told) == 2
    assert SILENCE_S <= clock.now < SILENCE_S + 5
    assert "waiting 60 s for a sign of it" in told[0]
    # The one that was paused finds the new term at its next beat, and never takes it back by itself.
    stopped, heard = threading.Event(), list[str]()

    def stop(text: str) -> None:
        heard.append(text)
        stopped.set()

    with beating(store, term, stop, every_s=0.01):
        assert stopped.wait(30)
    assert len(heard) == 1 and "taken over by process" in heard[0] and "in term 2" in heard[0]
    assert newest_term(store) == 2


@pytest.mark.fault(7)
def test_of_hosts_that_resume_at_once_one_gets_the_term(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, start = MemoryStore(), threading.Barrier(6)
    monkeypatch.setattr(leases, "_await_silence", lambda *_: start.wait(30))
    on(tmp_path, store, "first", Clock())
    won, refused = list[int](), list[str]()

    def resume(host: str) -> None:
        try:
            won.append(on(tmp_path, store, host, Clock()))
        except StoreError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=resume, args=(f"host{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [2] and len(refused) == 5
    assert all("in use by process" in text and "in term 2" in text for text in refused)


def test_a_store_that_fails_for_a_while_ends_no_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, clock = MemoryStore(), Clock()
    term, tried, failing = on(tmp_path, store, "a", clock), threading.Event(), [True]
    write = store.write_document

    def failing_write(path: str, document: dict[str, object], *, create: bool) -> str:
        if failing[0]:
            tried.set()
            raise StoreError("503 SlowDown")
        return write(path, document, create=create)

    monkeypatch.setattr(store, "write_document", failing_write)
    with beating(store, term, pytest.fail, every_s=0.01):
        assert tried.wait(30)
        failing[0] = False
    assert store.read_document(f"terms/{term:05d}-beat.json")["ended"]
