"""Where a run's store is: its folder, or a place in an object store (`store.root`), which a file in the folder names.

 <run.root>/<name>/store.txt            s3://bucket/prefix/<name>, of a run whose store is there
 s3://bucket/prefix/<name>/run.json     what the run is, as in the folder
                           config.json  the file the run was started from
                           terms/       who worked on it when, see `orchestrator.leases`
The folder keeps what one host writes alone: lock, journal, what was told to MLflow, analysis. It can be made again from the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.folders import STORE_FILE, make_folder, read_run_document
from repsearch.errors import ConfigError, StoreError
from store import layout, open_store
from store.base import Store
from store.opening import check_remote, folders_in, is_remote

CONFIG_DOCUMENT = "config.json"


def location_of(folder: Path) -> str:
    """Return where the store of the run in `folder` is."""
    try:
        return (folder / STORE_FILE).read_text().strip()
    except FileNotFoundError:
        return str(folder)
    except OSError as error:
        raise StoreError(f"{folder / STORE_FILE}: cannot be read: {error.strerror}") from error


def store_of(folder: Path, *, late_s: float | None = None, retry_s: float | None = None) -> Store:
    """Return the store of the run in `folder`; see `open_store`."""
    return open_store(location_of(folder), late_s=late_s, retry_s=retry_s)


def check_store_root(root: str) -> None:
    """Raise `StoreError` unless an object store that is to hold runs can be used."""
    if root:
        check_remote(root)


def names_in(root: str) -> set[str]:
    """Return the names of the runs in an object store; none if there is none."""
    return set(folders_in(root)) if root else set()


def refuse_store_root(root: str, what: str) -> None:
    """Raise `ConfigError` for what cannot have its store elsewhere."""
    if root:
        raise ConfigError(f"store.root: {root}: {what} keeps what it writes in run.root; leave store.root out")


def create_in_store(location: str, document: Mapping[str, Any], toml: bytes) -> None:
    """Write the documents of a new run; of several that create one of this name one wins, the others get a `StoreError`."""
    store = open_store(location)
    if layout.RUN_DOCUMENT in store.documents(""):
        raise StoreError(f"{location}: the run name is taken; choose another with --name, or resume it: orchestrator resume {location}")
    store.write_document(layout.RUN_DOCUMENT, document, create=True)
    store.write_document(CONFIG_DOCUMENT, {"toml": toml.decode()}, create=True)


def adopted(location: str) -> Path:
    """Return the folder of the run whose store is at `location`; made here if it is not there, as when its host was lost."""
    location = location.rstrip("/")
    store = open_store(location)
    document = read_run_document(store, location)
    folder: Path = Path(document["config"]["run"]["root"]).expanduser().absolute() / str(document["name"])
    if folder.exists():
        if location_of(folder) != location:
            raise StoreError(f"{folder}: is in the way: it is the folder of another run than {location}; move it, or work elsewhere")
        return folder
    toml = store.read_document(CONFIG_DOCUMENT)["toml"] if CONFIG_DOCUMENT in store.documents("") else ""
    make_folder(folder, document, toml.encode(), location)
    return folder


__all__ = ["adopted", "check_store_root", "create_in_store", "is_remote", "location_of", "names_in", "refuse_store_root", "store_of"]
