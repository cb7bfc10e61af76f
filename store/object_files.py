"""Files of an object store: those below a prefix of a bucket.

There is no rename: an object appears whole when it is put. Creating is a put on the condition that nothing is there (`mode="create"`).
Such a put can be carried out though its answer is lost; each carries a name of its own, so that the writer knows its object again.
Objects are put by one request, never in parts, so a writer that dies leaves no parts behind.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import urlsplit

from repsearch.errors import StoreError
from repsearch.failpoints import reach
from store.paths import check_path
from store.patience import Patience
from store.retrying import RemoteError, answered

T = TypeVar("T")

WRITER = "repsearch-writer"
"""Name of the attribute of an object that says which put created it."""
CONNECT_S, REQUEST_S = 5, 60
"""Seconds that a connection, and a request with its answer, may take."""
RETRIES = Patience(120.0)
"""How long a request is tried again that may be answered yet."""
_AT_ONCE = 16
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


class ObjectOutput:
    """A new object, kept in memory until it is whole; `put` creates it and says whether it was not there."""

    def __init__(self, key: str, put: Callable[[str, bytes], bool]) -> None:
        self._key, self._put = key, put
        self._data = bytearray()

    def write(self, data: memoryview) -> None:
        """Append `data`."""
        self._data += data

    def close(self) -> None:
        """Do nothing: what is not flushed goes with this object."""

    def flush(self) -> None:
        """Put the object."""
        if not self._put(self._key, bytes(self._data)):
            raise FileExistsError(self._key)
        self._data = bytearray()


class ObjectFiles:
    """The objects at `location`, `s3://bucket/prefix`; nothing is asked of the store before the first use.

    Credentials, region and endpoint come from the environment, by the names that AWS's own tools use.
    """

    def __init__(self, location: str, *, patience: Patience = RETRIES) -> None:
        self._location, self._patience = location, patience
        self._bucket, prefix = _parts(location)
        self._objects = _connected(self._bucket, prefix)

    def __str__(self) -> str:
        return self._location

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Return an object or a part of it, as `Files.read` says."""
        if length is None:
            return self._ask(lambda: bytes(self._objects.get(key).bytes()))
        try:
            return self._ask(lambda: bytes(self._objects.get_range(key, start=start, length=length)))
        except RemoteError as error:
            if not str(error.strerror).startswith("416"):
                raise
            return b""  # it ends before `start`

    def sizes(self, keys: Sequence[str]) -> list[int | None]:
        """Return sizes, as `Files.sizes` says."""
        return [self._size(keys[0])] if len(keys) == 1 else list(_threads().map(self._size, keys))

    def write(self, key: str, data: bytes, *, create: bool, durable: bool = True) -> bool:
        """Put an object, as `Files.write` says; it stays in any case."""
        if create:
            return self._create(key, data)
        reach("store.replace.before")
        self._ask(lambda: self._objects.put(key, data, use_multipart=False))
        reach("store.replace.after")
        return True

    def output(self, key: str) -> ObjectOutput:
        """Return a new object, as `Files.output` says."""
        return ObjectOutput(key, self._create)

    def entries(self, folder: str) -> tuple[list[str], list[str]]:
        """List a folder, as `Files.entries` says."""
        found = self._ask(lambda: self._objects.list_with_delimiter(folder or None))
        return sorted(_name(entry["path"]) for entry in found["objects"]), sorted(map(_name, found["common_prefixes"]))

    def below(self, folder: str) -> list[str]:
        """List all below a folder, as `Files.below` says."""
        return self._ask(lambda: sorted(entry["path"] for batch in self._objects.list(folder or None) for entry in batch))

    def remove(self, key: str, *, durable: bool) -> None:
        """Remove an object, as `Files.remove` says."""
        reach("store.remove.before")
        self._ask(lambda: self._objects.delete(key))
        reach("store.remove.after")

    def remove_folder(self, folder: str, *, durable: bool) -> None:
        """Remove all below a folder, as `Files.remove_folder` says."""
        if keys := self.below(folder):
            reach("store.clear.before")
            self._ask(lambda: self._objects.delete(keys))
            reach("store.clear.after")

    def flush_folder(self, folder: str) -> None:
        """Do nothing: there are no folders."""

    def settle(self, keys: Sequence[str]) -> None:
        """Do nothing: what is put stays."""

    def check(self) -> None:
        """Raise `StoreError` unless the store can be listed, written, read and deleted, and creates a file once only; leaves nothing."""
        probe = f".check-{uuid.uuid4().hex}"
        try:
            self.entries("")
            created = [self._create(probe, b"1"), self._create(probe, b"2")]
            read = self.read(probe)
            self.remove(probe, durable=True)
        except OSError as error:
            hint = getattr(error, "hint", "check the store")
            raise StoreError(f"store {self._location}: cannot be used: {error.strerror}; {hint}") from error
        if created != [True, False] or read != b"1":
            raise StoreError(
                f"store {self._location}: does not refuse to create an object that is there (If-None-Match), "
                "so two writers could overwrite one another; use a store that does"
            )

    def _create(self, key: str, data: bytes) -> bool:
        writer = uuid.uuid4().hex

        def put() -> bool:
            self._objects.put(key, data, mode="create", attributes={WRITER: writer}, use_multipart=False)
            return True

        reach("store.create.before")
        try:
            created = self._ask(put)
        except FileExistsError:
            # Perhaps by a try of this very put, whose answer was lost.
            created = self._writer(key) == writer
        reach("store.create.after")
        return created

    def _writer(self, key: str) -> str:
        try:
            return str(self._ask(lambda: self._objects.get(key).attributes.get(WRITER, "")))
        except FileNotFoundError:
            return ""

    def _size(self, key: str) -> int | None:
        try:
            return self._ask(lambda: self._found_size(key))
        except FileNotFoundError:
            return None

    def _found_size(self, key: str) -> int:
        try:
            return int(self._objects.head(key)["size"])
        except FileNotFoundError:
            raise
        except Exception:
            # A refusal of HEAD has no body, and so does not say why.
            return int(self._objects.get(key).meta["size"])

    def _ask(self, request: Callable[[], T]) -> T:
        return answered(request, self._patience)


def _parts(location: str) -> tuple[str, str]:
    """Return bucket and prefix of `s3://bucket/prefix`; raises `StoreError` for anything else."""
    bucket, _, prefix = location.removeprefix("s3://").rstrip("/").partition("/")
    if not location.startswith("s3://") or not _BUCKET.fullmatch(bucket):
        raise StoreError(f"store {location!r}: name it as s3://bucket/prefix; a bucket has 3 to 63 of a-z, 0-9, '-' and '.'")
    if prefix:
        check_path(prefix)
    return bucket, prefix


def _connected(bucket: str, prefix: str) -> Any:
    try:
        from obstore.store import S3Store
    except ImportError:
        raise StoreError(f"store s3://{bucket}/{prefix}: needs obstore, which is not installed; pip install 'repsearch[s3]'") from None
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT") or ""
    return S3Store(
        bucket,
        prefix=prefix or None,
        client_options={
            "connect_timeout": timedelta(seconds=CONNECT_S),
            "timeout": timedelta(seconds=REQUEST_S),
            "allow_http": urlsplit(endpoint).scheme == "http",
        },
        retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=REQUEST_S)},
    )


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="objects")


def _name(path: str) -> str:
    return path.rpartition("/")[2]
