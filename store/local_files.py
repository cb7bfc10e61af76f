"""Files of a local or shared disk: those of a folder."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Sequence
from io import FileIO
from pathlib import Path

from repsearch.errors import StoreError
from repsearch.failpoints import reach
from store import files
from store.files import failures


class LocalFile:
    """A new file on the disk, written in pieces."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: FileIO = path.open("xb", buffering=0)

    def write(self, data: memoryview) -> None:
        """Append `data`, as `Output.write` says."""
        while data:
            data = data[self._file.write(data) :]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def flush(self) -> None:
        """Flush the file to the disk."""
        files.sync(self._path)


class LocalFiles:
    """The files in folder `root`, which the first write creates. A link on the way to a file may not leave it."""

    def __init__(self, root: Path) -> None:
        with failures(f"store {root}"):
            self._root = Path(root).resolve()
        if self._root.exists() and not self._root.is_dir():
            raise StoreError(f"store {root}: is not a folder; give the path of a folder")

    def __str__(self) -> str:
        return str(self._root)

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Return a file or a part of it, as `Files.read` says."""
        with self._place(key).open("rb") as file:
            if start:
                file.seek(start)
            return file.read(-1 if length is None else length)

    def sizes(self, keys: Sequence[str]) -> list[int | None]:
        """Return sizes, as `Files.sizes` says."""
        # Where nothing is, no link leads out.
        return [None if _size(self._root / key) is None else _size(self._place(key)) for key in keys]

    def write(self, key: str, data: bytes, *, create: bool, durable: bool = True) -> bool:
        """Write a file, as `Files.write` says."""
        path = self._place(key)
        if durable:
            files.make_folders(path.parent, self._root)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
        if create:
            return files.create_file(path, data, durable=durable)
        files.replace_file(path, data, durable=durable)
        return True

    def output(self, key: str) -> LocalFile:
        """Return a new file, as `Files.output` says; its folder is made, to be flushed by the caller."""
        path = self._place(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        return LocalFile(path)

    def entries(self, folder: str) -> tuple[list[str], list[str]]:
        """List a folder, as `Files.entries` says."""
        place = self._place(folder)
        names, folders = list[str](), list[str]()
        for entry in sorted(place.iterdir()) if place.is_dir() else []:
            if entry.is_dir():
                folders.append(entry.name)
            elif entry.is_file():
                names.append(entry.name)
        return names, folders

    def below(self, folder: str) -> list[str]:
        """List all below a folder, as `Files.below` says."""
        place = self._place(folder)
        if place.is_symlink() or not place.is_dir():
            return [folder] if place.exists() or place.is_symlink() else []
        return [path.relative_to(self._root).as_posix() for path in files.tree(place) if path.is_symlink() or not path.is_dir()]

    def remove(self, key: str, *, durable: bool) -> None:
        """Remove a file, as `Files.remove` says."""
        path = self._place(key)
        reach("store.remove.before")
        try:
            path.unlink()
        except (FileNotFoundError, NotADirectoryError):
            return
        if durable:
            files.sync(path.parent)
        reach("store.remove.after")

    def remove_folder(self, folder: str, *, durable: bool) -> None:
        """Remove a folder, as `Files.remove_folder` says."""
        place = self._place(folder)
        with contextlib.suppress(FileNotFoundError):
            files.remove_folder(place)
            if durable:
                files.sync(place.parent)

    def flush_folder(self, folder: str) -> None:
        """Flush a folder to the disk."""
        files.sync(self._place(folder))

    def settle(self, keys: Sequence[str]) -> None:
        """Flush to the disk what lies at `keys`."""
        if files.sync_filesystem(self._root):
            return
        places = [self._place(key) for key in keys]
        above = {parent for place in places for parent in files.ancestors(place, self._root)[1:]}
        below = [file for place in places for file in (place, *files.tree(place)) if file.exists()]
        files.sync_all([*below, *sorted(above)])

    def _place(self, key: str) -> Path:
        """Return the place of `key`; raises `StoreError` if it, or a link on the way, leaves the root."""
        place = self._root / key
        with failures(f"{key}: cannot be found in {self._root}"):
            real, root = os.path.realpath(place), str(self._root)
            if real != root and not real.startswith(root.rstrip(os.sep) + os.sep):
                raise StoreError(f"{key}: is a link that leaves the store's root {self._root}; put the data inside the root")
        return place


def _size(path: Path) -> int | None:
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
        raise
    return found.st_size if stat.S_ISREG(found.st_mode) else None
