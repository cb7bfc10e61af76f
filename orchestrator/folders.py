"""Making a run's folder, whole or not at all."""

from __future__ import annotations

import errno
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from repsearch.errors import StoreError
from repsearch.failpoints import reach
from store import layout, open_store
from store.base import DocumentStore
from store.documents import require_schema
from store.files import PARTIAL, remove_folder, sync

CONFIG_FILE = "config.toml"
STORE_FILE = "store.txt"


def read_run_document(store: DocumentStore, place: Path | str) -> dict[str, Any]:
    """Return `run.json` of the run in `store`, which is at `place`; raises `StoreError` unless it is there, whole and of our version."""
    document = store.read_document(layout.RUN_DOCUMENT)
    require_schema(f"{place}/{layout.RUN_DOCUMENT}", document, layout.RUN_SCHEMA)
    return document


def make_folder(folder: Path, document: Mapping[str, Any], toml: bytes, location: str) -> None:
    """Make a run's folder with `config.toml`, `run.json` and, if its store is elsewhere, at `location`, `store.txt`.

    Raises `StoreError` if the folder is there and holds something.
    """
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}{PARTIAL}")
    reach("run.folder.before")
    try:
        temporary.mkdir(parents=True)
        (temporary / CONFIG_FILE).write_bytes(toml)
        open_store(temporary).write_document(layout.RUN_DOCUMENT, document, create=True)
        if location != str(folder):
            (temporary / STORE_FILE).write_text(location)
        reach("run.folder.filled")
        # Renaming replaces an empty folder, which is nobody's run, and refuses any other.
        temporary.rename(folder)
        sync(folder.parent)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise StoreError(f"{folder}: the run name is taken; choose another with --name") from None
        raise StoreError(f"{folder}: cannot be made: {error.strerror}; set run.root to a folder that can be written") from None
    finally:
        remove_folder(temporary, missing_ok=True)
    reach("run.folder.after")
