"""What a run is doing, from what it writes: run.json, its journal and its lock. Light: usable while it runs, loads no torch."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.control import NOW_FILE, read_json, stopped
from orchestrator.journal import Record, last_of_run, read_journal
from orchestrator.live import text_of
from orchestrator.remote import is_remote, location_of
from orchestrator.runs import open_run
from orchestrator.steering import working_on
from repsearch.windows import windows_of
from store import layout, open_store

RETRY_S = 10.0
"""Seconds for which a store that does not answer is asked again."""


def status_of(folder: Path) -> dict[str, Any]:
    """Return the state of the run in `folder` as JSON values; raises `StoreError` if it cannot be read.

    state: "running", "paused", "stopping", "finished", "stopped", "failed", "killed" or "interrupted" (its process ended without a word).
    waits: who waits for what, since when and until when (Unix times; None: no bound), and a note of what is known.
    seconds_since_beat: since the orchestrator last said what it waits for; more than a few where it is stopped itself.
    shards: of the round; None where their size follows from the speed (`searcher.shard_examples = "auto"`).
    phase: "search", "learn" or "" (between rounds, or not running). Rounds are numbered from 0.
    ended: why no round follows the last one; "" before its end. rounds_planned: the most rounds.
    search: what a search that goes on has found (see `orchestrator.live`); images_done and seconds_left: of it, None outside.
    Of a streamed run, up to the last commit: staleness, rounds by the number of rounds that the network searched lagged behind;
    searcher_waited_seconds, of all searchers for the learner; learner_waited_seconds, for searchers.
    """
    run, records, holder = open_run(folder), read_journal(folder), working_on(folder)
    now = read_json(folder / NOW_FILE) if holder else {}
    finished = [record for record in records if record["kind"] == "round_finished"]
    round_number, current = _current(records)
    epochs = _plan(records, round_number).get("epochs", run.config.learn.epochs)
    window = windows_of(run.config, run.dataset["train"]).of(round_number)
    accuracies = [record["report"]["metrics"].get("test/accuracy") for record in finished]
    phase = _phase(folder, records, round_number, study=bool(run.study)) if current and holder else ""
    return {
        "name": run.name,
        "run_id": run.run_id,
        "folder": str(folder),
        "state": _asked(now) or _state(records, running=holder is not None),
        "error": _error(records),
        "term": run.term,
        "owner": {name: value for name, value in holder.items() if name != "token"} if holder else None,
        "round": round_number,
        "rounds_finished": len(finished),
        "rounds_planned": run.config.rounds.count,
        "phase": phase,
        **_search(records, round_number, searching=phase == "search"),
        **_shards(folder, round_number, run.study.get("images", window.count), run.config.searcher.shard_examples),
        "epoch": _epoch(records, round_number) if current else 0,
        "epochs": epochs,
        **_pace(records, round_number if current and holder else -1, epochs, window.count),
        "evaluations": sum(record["report"]["metrics"]["search/evaluations"] for record in finished),
        "test_accuracy": next((accuracy for accuracy in reversed(accuracies) if accuracy is not None), None),
        "ended": finished[-1]["report"].get("ended", "") if finished else "",
        **_stream(records),
        "waits": now.get("waits", []),
        "seconds_since_beat": max(0.0, time.time() - now["time"]) if now else None,
        "seconds_since_last_record": max(0.0, time.time() - records[-1]["time"]) if records else None,
    }


def readable(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state with its waits as lines for people."""
    lines = [_wait_line(wait, time.time()) for wait in found["waits"]]
    return {**found, "waits": "\n".join(lines)}


def _wait_line(wait: Mapping[str, Any], now: float) -> str:
    until = "without a bound" if wait["until"] is None else f"for {max(0.0, wait['until'] - now):.0f} s more at most"
    note = f": {wait['note']}" if wait["note"] else ""
    return f"{wait['who']} waits for {wait['what']}, since {max(0.0, now - wait['since']):.0f} s, {until}{note}"


def _stream(records: Sequence[Record]) -> dict[str, Any]:
    """Return of a streamed run how many rounds lagged how far behind, who waited how long, and what is left; nothing of another run."""
    told = [record for record in records if record["kind"] == "stream_progress"]
    if not told:
        return {}
    newest = told[-1]
    ended = any(record["kind"] == "run_finished" for record in records[-2:])
    return {
        "round": newest["round"],
        "phase": "" if ended else "stream",
        "seconds_left": None if ended else newest["seconds_left"],
        "rounds_per_second": newest["rounds_per_s"],
        "staleness": newest["staleness"],
        "searcher_waited_seconds": newest["searcher_waited_s"],
        "learner_waited_seconds": newest["learner_waited_s"],
    }


def state_of(folder: Path) -> str:
    """Return the state of the run in `folder`; see `status_of`."""
    return _state(read_journal(folder), running=working_on(folder) is not None)


def _asked(now: Mapping[str, Any]) -> str:
    return {"pause": "paused", "stop": "stopping", "stop_now": "stopping"}.get(now.get("wanted", ""), "")


def _state(records: Sequence[Record], *, running: bool) -> str:
    if running:
        return "running"
    last = last_of_run(records)
    if last is not None and last["kind"] == "run_finished":
        return "stopped" if last["error"] == str(stopped()) else str(last["status"]).lower()
    return "interrupted"


def _error(records: Sequence[Record]) -> str:
    last = last_of_run(records)
    return str(last["error"]) if last is not None and last["kind"] == "run_finished" else ""


def _current(records: Sequence[Record]) -> tuple[int, bool]:
    """Return the newest round, and whether it is still going on."""
    started = [record["round"] for record in records if record["kind"] == "round_started"]
    finished = {record["round"] for record in records if record["kind"] == "round_finished"}
    newest = max(started, default=0)
    return newest, bool(started) and newest not in finished


def _phase(folder: Path, records: Sequence[Record], round: int, *, study: bool) -> str:
    if not _plan(records, round).get("search", True):
        return "learn"
    # A setting of a study is searched only.
    if study:
        return "search"
    path = layout.round_document(round)
    if is_remote(location := location_of(folder)):
        searched = path.rpartition("/")[2] in open_store(location, retry_s=RETRY_S).documents(layout.round_folder(round))
    else:
        searched = (folder / path).exists()
    return "learn" if searched else "search"


def _plan(records: Sequence[Record], round: int) -> Mapping[str, Any]:
    """Return the plan of a round, {} before it has started."""
    plans = (record["plan"] for record in records if record["kind"] == "round_started" and record["round"] == round)
    return next(plans, {})


def _shards(folder: Path, round: int, examples: int, size: int | str) -> dict[str, int | None]:
    if is_remote(location := location_of(folder)):
        names = open_store(location, retry_s=RETRY_S).committed(layout.search_folder(round))
    else:
        # Looked up in the file system, where the names say enough.
        names = [path.parent.name for path in (folder / layout.search_folder(round)).glob("*-a*/MANIFEST.json")]
    done = {layout.parse_shard_name(name)[0] for name in names}
    return {"shards_done": len(done), "shards": -(-examples // size) if isinstance(size, int) else None}


def _search(records: Sequence[Record], round: int, *, searching: bool) -> dict[str, Any]:
    found = [record for record in records if record["kind"] == "search_progress" and record["round"] == round] if searching else []
    if not found:
        return {"search": "", "images_done": None, "seconds_left": None}
    newest = found[-1]
    text = f"{newest['images']} of {newest['total']} images, {text_of(newest)}"
    return {"search": text, "images_done": newest["images"], "seconds_left": newest["seconds_left"]}


def _epoch(records: Sequence[Record], round: int) -> int:
    points = (record for record in records if record["kind"] == "point" and record["round"] == round)
    return max((record["step"] for record in points if record["key"].startswith("learn/")), default=0)


def _pace(records: Sequence[Record], round: int, epochs: int, examples: int) -> dict[str, float | None]:
    """Return examples per second of learning and the seconds left of it, from when the round's last epochs ended; None before two have."""
    ends: dict[int, float] = {}
    for record in records:
        if record["kind"] == "point" and record["round"] == round and record["key"] == "learn/loss":
            ends[record["step"]] = record["time"]
    times = [ends[epoch] for epoch in sorted(ends)][-6:]
    # The median: epochs that an earlier opening of the run learned may have been noted all at once, or long ago.
    pace = statistics.median(after - before for before, after in itertools.pairwise(times)) if len(times) > 1 else 0.0
    if pace <= 0:
        return {"examples_per_second": None, "seconds_left": None}
    return {"examples_per_second": examples / pace, "seconds_left": max(0.0, (epochs - max(ends)) * pace - (time.time() - times[-1]))}
