"""What is committed of a streamed run: a document per segment, which is some rounds in a row and the learner's state after them.

first       the first round of the segment
rounds      per round its report ("report"), what its search found ("search": the fields of `orchestrator.searching.SearchRecord`), and
            the seconds of each step of searching and learning it ("steps")
network     the network after the last of them
state       the learner's state after the last of them; only that of the newest segment is kept
seconds     wall time since the segment before
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from orchestrator.report import RoundReport
from store import Store, layout

_NAME = re.compile(r"(\d{8,})\.json")


def segments(store: Store) -> Iterator[dict[str, Any]]:
    """Yield the segments that are committed, in order."""
    for first in segment_starts(store):
        yield store.read_document(layout.segment_document(first))


def segment_starts(store: Store) -> list[int]:
    """Return the first rounds of the segments that are committed, in order."""
    matches = (_NAME.fullmatch(name) for name in store.documents(layout.SEGMENTS_FOLDER))
    return sorted(int(match[1]) for match in matches if match)


def streamed_reports(store: Store) -> list[RoundReport]:
    """Return the reports of the rounds that are committed, in order; none of a run that is not streamed."""
    return [RoundReport.from_dict(entry["report"]) for segment in segments(store) for entry in segment["rounds"]]


def streamed_search(store: Store, round: int) -> dict[str, Any] | None:
    """Return what the search of a committed round found; None if the round is in no segment."""
    first = max((start for start in segment_starts(store) if start <= round), default=None)
    if first is None:
        return None
    rounds = store.read_document(layout.segment_document(first))["rounds"]
    return dict(rounds[round - first]["search"]) if round - first < len(rounds) else None


def pruned_before(store: Store) -> int:
    """Return the round below which groups were removed."""
    there = layout.PRUNED_DOCUMENT in store.documents("")
    return int(store.read_document(layout.PRUNED_DOCUMENT)["before"]) if there else 0
