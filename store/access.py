"""The files of a store, wherever they lie: what `ZarrStore` does with a disk and with an object store.

A file has a key, relative to the store's root, parts separated by `/`. It appears whole or not at all. Failures are `OSError`s, which
`store.files.failures` turns into messages; a file that is not there is a `FileNotFoundError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Output(Protocol):
    """A file written front to back; nothing is there for sure before it is flushed."""

    def write(self, data: memoryview) -> None:
        """Append `data`."""

    def close(self) -> None:
        """Take no more; again is fine."""

    def flush(self) -> None:
        """Return when all of it is there to stay; after `close`, in any thread."""


class Files(Protocol):
    """Files by key; `str` of it is the root, for messages. Threads may share it."""

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Return the bytes of a file, or `length` of them from `start` on, fewer where it ends."""

    def sizes(self, keys: Sequence[str]) -> list[int | None]:
        """Return the size of each file, None for one that is not there."""

    def write(self, key: str, data: bytes, *, create: bool, durable: bool = True) -> bool:
        """Write a file, to stay if `durable`. With `create` False, and nothing changed, if it is there: of several writers one wins."""

    def output(self, key: str) -> Output:
        """Return a new file to be written in pieces; a `FileExistsError`, now or from `flush`, if it is there."""

    def entries(self, folder: str) -> tuple[list[str], list[str]]:
        """Return the names of the files and of the folders directly below `folder` ("" is the root), sorted; none if it is not there."""

    def below(self, folder: str) -> list[str]:
        """Return the keys of everything below `folder` but folders, sorted."""

    def remove(self, key: str, *, durable: bool) -> None:
        """Remove a file; absent is fine."""

    def remove_folder(self, folder: str, *, durable: bool) -> None:
        """Remove a folder with everything below it; absent is fine."""

    def flush_folder(self, folder: str) -> None:
        """Have the entries of a folder stay."""

    def settle(self, keys: Sequence[str]) -> None:
        """Have files that were not written to stay, or folders with all below, do so."""
