"""Checks of what a store holds: one group, or a whole run.

A run is verified from its documents down: `run.json`, then every round's `round.json` and `report.json`, then each group that they
name by `{"path", "digest"}`, every chunk of it, and the snapshots that a learned network names. Attempts that no document names do not
count and are not looked at. Of a streamed run the segments take the place of those of rounds; groups of rounds that `pruned.json` says
were removed are not expected.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from repsearch.errors import StoreError
from store import layout
from store.base import Reference, RepresentationStore, Store
from store.documents import require_schema
from store.manifest import ArrayInfo, Manifest

_READ_BYTES = 64_000_000


@dataclass(frozen=True)
class Finding:
    """Something wrong with a run: the document or group it is in, and a message that names it too."""

    path: str
    problem: str


def verify_group(store: RepresentationStore, ref: Reference | str) -> Manifest:
    """Read all of a committed group and return its manifest; raises `StoreError` naming the first thing missing or altered."""
    manifest = store.manifest(ref)
    for name, info in manifest.arrays.items():
        # In pieces of whole chunks, so that memory does not grow with the group.
        chunk_bytes = max(1, info.chunk_rows * _row_bytes(info))
        step = info.chunk_rows * max(1, _READ_BYTES // chunk_bytes)
        for start in range(0, max(1, info.shape[0]), step):
            store.read(ref, name, slice(start, start + step))
    return manifest


def verify_run(store: Store) -> list[Finding]:
    """Return everything wrong with the run in `store`, in the order of the rounds; none if all it says is there, unaltered."""
    findings: list[Finding] = []
    documents: dict[str, Any] = {}
    for path in _expected_documents(store):
        try:
            documents[path] = store.read_document(path)
        except StoreError as error:
            findings.append(Finding(path, str(error)))
    try:
        require_schema(layout.RUN_DOCUMENT, documents.get(layout.RUN_DOCUMENT, {"schema": layout.RUN_SCHEMA}), layout.RUN_SCHEMA)
    except StoreError as error:
        # What the others say would be guessed.
        return [Finding(layout.RUN_DOCUMENT, str(error))]
    findings += _gaps(documents)
    references = {reference: None for document in documents.values() for reference in references_in(document)}
    for reference in references:
        if not _expected(reference.path, documents):
            continue
        try:
            manifest = verify_group(store, reference)
        except StoreError as error:
            # A run that goes on may have removed it meanwhile.
            if _expected(reference.path, {**documents, **_newest(store)}):
                findings.append(Finding(reference.path, str(error)))
            continue
        findings += _verify_snapshots(store, manifest)
    return findings


def _verify_snapshots(store: Store, manifest: Manifest) -> list[Finding]:
    """Return what is wrong with the snapshots that a learned network names."""
    findings = []
    for reference in references_in(manifest.attributes.get("snapshots", [])):
        try:
            verify_group(store, reference)
        except StoreError as error:
            findings.append(Finding(reference.path, str(error)))
    return findings


def _newest(store: Store) -> dict[str, Any]:
    """Return the documents, as they are now, by which groups of a run that goes on need not be there."""
    segments = [f"{layout.SEGMENTS_FOLDER}/{name}" for name in store.documents(layout.SEGMENTS_FOLDER)][-1:]
    pruned = [layout.PRUNED_DOCUMENT] if layout.PRUNED_DOCUMENT in store.documents("") else []
    found: dict[str, Any] = {}
    for path in (*segments, *pruned):
        with contextlib.suppress(StoreError):
            found[path] = store.read_document(path)
    return found


def _gaps(documents: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield a finding for every segment that does not begin where the one before ends."""
    reached = 0
    for path in sorted(path for path in documents if path.startswith(f"{layout.SEGMENTS_FOLDER}/")):
        first, rounds = int(documents[path]["first"]), len(documents[path]["rounds"])
        if first != reached:
            yield Finding(path, f"{path}: begins at round {first}, but the segment before ends at {reached}; restore what is between")
        reached = first + rounds


def _expected(path: str, documents: Mapping[str, Any]) -> bool:
    """Return whether a group that a document names has to be there."""
    round = layout.removable_round(path)
    if round is None:
        return True
    if path.startswith(f"{layout.STATES_FOLDER}/"):
        # A state is removed when the next one is there.
        newest = max(segment for segment in documents if segment.startswith(f"{layout.SEGMENTS_FOLDER}/"))
        return bool(path == documents[newest]["state"]["path"])
    return round >= int(documents.get(layout.PRUNED_DOCUMENT, {"before": 0})["before"])


def named_groups(store: Store) -> set[str]:
    """Return the paths of all groups that a document of the run names; raises `StoreError` if one cannot be read."""
    documents = (store.read_document(path) for path in _expected_documents(store) if path in _there(store, path))
    return {reference.path for document in documents for reference in references_in(document)}


def _there(store: Store, path: str) -> list[str]:
    folder, _, name = path.rpartition("/")
    return [path] if name in store.documents(folder) else []


def references_in(document: Any) -> Iterator[Reference]:
    """Yield every reference in a document: each table with a path and a digest, at any depth."""
    if isinstance(document, dict):
        path, digest = document.get("path"), document.get("digest")
        if isinstance(path, str) and isinstance(digest, str) and path and digest:
            yield Reference(path, digest)
        document = list(document.values())
    if isinstance(document, list):
        for value in document:
            yield from references_in(value)


def _expected_documents(store: Store) -> list[str]:
    """Return the documents that the run has to have: both of every round but the last, and those that exist of the last."""
    rounds = _documents_by_round(store)
    last = max((round for round, present in enumerate(rounds) if present), default=-1)
    paths = [layout.RUN_DOCUMENT]
    paths += [layout.PRUNED_DOCUMENT] if layout.PRUNED_DOCUMENT in store.documents("") else []
    paths += [f"{layout.SEGMENTS_FOLDER}/{name}" for name in store.documents(layout.SEGMENTS_FOLDER)]
    for round in range(last + 1):
        both = [layout.round_document(round), layout.report_document(round)]
        # A round that is going on, or was interrupted, has the first alone; the report is written after it.
        complete = round < last or both[1] in rounds[round]
        paths.extend(both if complete else both[:1])
    return paths


def _documents_by_round(store: Store) -> list[set[str]]:
    planned = _planned_rounds(store)
    rounds: list[set[str]] = []
    while (present := _round_documents(store, len(rounds))) or len(rounds) < planned:
        rounds.append(present)
    return rounds


def _round_documents(store: Store, round: int) -> set[str]:
    folder = layout.round_folder(round)
    known = (layout.round_document(round), layout.report_document(round))
    return {path for name in store.documents(folder) if (path := f"{folder}/{name}") in known}


def _planned_rounds(store: Store) -> int:
    # A lost round in the middle must not hide the ones after it; an unreadable run.json is a finding of its own.
    try:
        rounds = store.read_document(layout.RUN_DOCUMENT)["config"]["rounds"]["count"]
    except (StoreError, KeyError, TypeError):
        return 0
    return rounds if isinstance(rounds, int) else 0


def _row_bytes(info: ArrayInfo) -> int:
    return math.prod(info.shape[1:]) * np.dtype(info.dtype).itemsize
