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
from store.files import PARTIAL, remove_folder, sync

CONFIG_FILE = "config.toml"
STORE_FILE = "store.txt"


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
