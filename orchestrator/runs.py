"""A run's folder: its name, `run.json`, its term, and the lock of the orchestrator that owns it.

 <run.root>/<name>/run.json            what the run is: configuration, digests, versions, term
                   config.toml         the file the run was started from
                   orchestrator.lock   held with flock while an orchestrator works on the run; says which process that is
The lock refuses a second orchestrator on one file system; the term fences one that is paused elsewhere. What is searched and learned lies
in the folder too, or in an object store (`orchestrator.remote`), where terms are leases (`orchestrator.leases`).
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import time
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from orchestrator.folders import make_folder, read_run_document
from orchestrator.remote import create_in_store, is_remote
from repsearch.config import RunConfig, parse_resolved
from repsearch.errors import ConfigError, StoreError
from repsearch.failpoints import reach
from store import layout, open_store
from store.base import DocumentStore

LOCK_FILE = "orchestrator.lock"
BASELINE = "-baseline"
DEFAULT_ROOT = Path("runs")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_LOCK_TRIES = 5
_LOCK_PAUSE_S = 0.05


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run as `run.json` describes it.

    dataset: name, digest, classes, train, validation, test, input_shape.
    digests: search, learn, dataset.
    baseline_of: name of the run that this one is the baseline of, or "".
    study: for the folder of a study, its name and fields (`orchestrator.studies`); empty for a run.
    sweep: for a trial of a sweep, the sweep's name and the trial's number; empty for any other run.
    """

    folder: Path
    run_id: str
    name: str
    term: int
    config: RunConfig
    dataset: Mapping[str, Any]
    digests: Mapping[str, str]
    versions: Mapping[str, str]
    created: float
    baseline_of: str = ""
    study: Mapping[str, Any] = field(default_factory=dict)
    sweep: Mapping[str, Any] = field(default_factory=dict)

    @property
    def location(self) -> str:
        """Where its store is: its folder, or a place in an object store."""
        root = self.config.store.root
        return f"{root}/{self.name}" if root else str(self.folder)

    def document(self) -> dict[str, Any]:
        """Return the contents of `run.json`."""
        return {
            "schema": layout.RUN_SCHEMA,
            "run_id": self.run_id,
            "name": self.name,
            "term": self.term,
            "config": self.config.model_dump(mode="json"),
            "dataset": dict(self.dataset),
            "digests": dict(self.digests),
            "seeds": {"run": self.config.run.seed},
            "versions": dict(self.versions),
            "created": self.created,
            "baseline_of": self.baseline_of,
            "study": dict(self.study),
            "sweep": dict(self.sweep),
        }

    def tags(self) -> dict[str, str]:
        """Return what the run is compared by."""
        config = self.config
        return {
            "dataset": config.dataset["name"],
            "network": config.network["name"],
            "policy": config.rounds.policy["name"],
            "strategy": config.search.strategy["name"] if config.rounds.policy["name"] != "learn_only" else "none",
            "objective": config.learn.objective["name"],
            "seed": str(config.run.seed),
            **({"study": str(self.study["name"])} if self.study else {}),
            **({"sweep": str(self.sweep["name"]), "trial": str(self.sweep["trial"])} if self.sweep else {}),
        }


class RunLock:
    """Ownership of a run's folder by this process, from entering the context to leaving it.

    Raises `StoreError` naming the owner while another process holds it. The kernel releases it when the owner dies.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK_FILE
        self._descriptor = -1

    def __enter__(self) -> Self:
        reach("run.lock.before")
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        # `owner` holds the lock for an instant while it looks, hence the tries.
        for last in (False,) * _LOCK_TRIES + (True,):
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if last:
                    os.close(self._descriptor)
                    raise StoreError(self._refusal()) from None
                time.sleep(_LOCK_PAUSE_S)
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "token": uuid.uuid4().hex}).encode(), 0)
        reach("run.lock.after")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        os.close(self._descriptor)

    def _refusal(self) -> str:
        who = holder_of(self._path.parent)
        owner_text = f"process {who.get('pid', '?')} on host {who.get('host', '?')}"
        return f"{self._path.parent}: the run is in use by {owner_text}; wait until it ends, or stop it and resume the run"


def owner(folder: Path) -> dict[str, Any] | None:
    """Return `{"pid", "host", "token"}` of the orchestrator working on the run, or None; the token is new with every opening of the run."""
    path = folder / LOCK_FILE
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return holder_of(folder)
    finally:
        os.close(descriptor)
    return None


def holder_of(folder: Path) -> dict[str, Any]:
    """Return who locked the run last, whether or not that goes on; {} if nobody did."""
    try:
        return dict(json.loads((folder / LOCK_FILE).read_text()))
    except (OSError, ValueError):
        return {}


def run_root(config: RunConfig) -> Path:
    """Return the folder that holds the runs, absolute."""
    return Path(config.run.root).expanduser().absolute()


def check_root(root: Path) -> None:
    """Raise `StoreError` unless `root` is a folder that can be written, or can be made; makes nothing."""
    existing = next(path for path in (root, *root.parents) if path.exists())
    if not existing.is_dir():
        raise StoreError(f"run.root: {root}: {existing} is not a folder; name a folder that can be written")
    if not os.access(existing, os.W_OK | os.X_OK) or os.statvfs(existing).f_flag & os.ST_RDONLY:
        raise StoreError(f"run.root: {root}: {existing} is not writable; name a folder that can be written")


def choose_name(root: Path, stem: str, name: str | None, *, baseline: bool, elsewhere: Collection[str] = ()) -> str:
    """Return the name of a new run: `name` if it is free, else `stem` and the next free number.

    elsewhere: further names that are taken.

    Raises `ConfigError` for a name that is no file name and `StoreError` for one that is taken, by a run or by its baseline.
    """
    if name is None:
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "run"
        pattern = re.compile(re.escape(stem) + r"-(\d+)(?:-baseline)?")
        there = [path.name for path in root.iterdir()] if root.is_dir() else []
        matches = [pattern.fullmatch(text) for text in (*there, *elsewhere)]
        return f"{stem}-{max((int(match[1]) for match in matches if match), default=0) + 1}"
    if not _NAME.fullmatch(name):
        raise ConfigError(f"--name {name!r}: use letters, digits, '.', '_' and '-', beginning with a letter or digit")
    for taken in (name, name + BASELINE) if baseline else (name,):
        if os.path.lexists(root / taken):
            raise StoreError(
                f"{root / taken}: the run name is taken; choose another with --name, or resume it: orchestrator resume {root / taken}"
            )
        if taken in elsewhere:
            raise StoreError(f"{taken}: the run name is taken in store.root; choose another with --name")
    return name


def create_folder(run: Run, toml: bytes) -> None:
    """Make the run's folder, and what its store begins with; raises `StoreError` if there is a run of this name."""
    if is_remote(run.location):
        create_in_store(run.location, run.document(), toml)
    make_folder(run.folder, run.document(), toml, run.location)


def new_run_id() -> str:
    """Return a run id that no other run has."""
    return uuid.uuid4().hex


def find_run(text: str) -> Path:
    """Return the folder of run `text`: a folder, or a name under `runs`; raises `StoreError` if there is no such run."""
    if is_remote(text):
        raise StoreError(f"{text}: name the run's folder; where it is lost, `orchestrator resume {text}` makes it again and goes on")
    for folder in (Path(text), DEFAULT_ROOT / text):
        if (folder / layout.RUN_DOCUMENT).is_file():
            return folder.absolute()
    if Path(text).is_dir():
        raise StoreError(f"{text}: not a run: it has no {layout.RUN_DOCUMENT}")
    known = sorted(path.parent.name for path in DEFAULT_ROOT.glob(f"*/{layout.RUN_DOCUMENT}"))
    there = f"; runs there: {', '.join(known)}" if known else ""
    raise StoreError(f"{text}: no such run; name a run's folder, or a run under {DEFAULT_ROOT}/{there}")


def open_run(folder: Path) -> Run:
    """Return the run in `folder`; raises `StoreError` if `run.json` is missing, altered, or of a version that this one does not read."""
    document = read_run_document(documents(folder), folder)
    return Run(
        folder=folder,
        config=_config_of(document, folder),
        **{key: document[key] for key in ("run_id", "name", "term", "dataset", "digests", "versions", "created", "baseline_of")},
        # Folders written before there were studies and sweeps lack them.
        study=document.get("study", {}),
        sweep=document.get("sweep", {}),
    )


def _config_of(document: Mapping[str, Any], folder: Path) -> RunConfig:
    try:
        # Resolved when it was written; resolving again would import the plug-ins, and with them torch.
        return parse_resolved(json.dumps(document["config"]))
    except ConfigError as error:
        file, version = folder / layout.RUN_DOCUMENT, document["versions"]["repsearch"]
        raise StoreError(
            f"{file}: was written by another version, {version}, whose configuration this one does not read: {error}; "
            "use the version that wrote the run"
        ) from None


def save_run(run: Run) -> None:
    """Rewrite `run.json`, whole or not at all."""
    reach("run.term.before")
    for place in dict.fromkeys((run.location, str(run.folder))):
        open_store(place).write_document(layout.RUN_DOCUMENT, run.document(), create=False)
    reach("run.term.after")


def documents(folder: Path) -> DocumentStore:
    """Return the documents in `folder` itself."""
    return open_store(str(folder))
