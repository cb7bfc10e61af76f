"""Which paths a request may name: only those inside the daemon's store root.

The check follows links as they are now; a link made between the check and the job's use of the path is not seen. Whoever can make
one can write to the store root anyway.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from google.protobuf.message import Message

from repsearch.errors import StoreError
from repsearch.rpc.v1 import jobs_pb2
from repsearch.serving.places import REMOTE, Place, Remote
from repsearch.serving.refusals import BadRequest, OutsideRoot

_REQUIRED = ("network",)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


def prepare_root(store: Place, check_remote: Callable[[str], None]) -> Place:
    """Return the real place of the store root, a folder created if it is not there; StoreError if nothing can be written there.

    check_remote: raises `StoreError` unless the object store at a location can be used.
    """
    if isinstance(store, Remote):
        check_remote(store.location)
        return store
    if _SCHEME.match(str(store)):
        raise StoreError(f"store root {str(store)!r}: only folders and s3://bucket/prefix can be served; give --store one of them")
    try:
        store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=store):
            return store.resolve(strict=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(f"store root {str(store)!r} is not a writable folder ({reason}); give --store one that is") from None


def inside(root: Place, path: str, *, what: str) -> Place:
    """Return the real place that `path`, relative to `root` or absolute, names; a Refusal unless it lies inside `root`."""
    if not path or "\0" in path:
        raise BadRequest(f"{what} {path!r} is not a path")
    if isinstance(root, Remote):
        return _inside_remote(root, path, what)
    if _SCHEME.match(path):
        raise OutsideRoot(f"{what} {path!r} is not a local path; this daemon serves paths inside its store root {str(root)!r}")
    try:
        real = (root / path).resolve()
    except (OSError, RuntimeError) as error:  # a loop of links
        raise BadRequest(f"{what} {path!r} cannot be resolved: {error}") from None
    if not real.is_relative_to(root):
        raise OutsideRoot(f"{what} {path!r} is {str(real)!r}, outside {str(root)!r}; start the daemon with a --store that holds it")
    return real


def _inside_remote(root: Remote, path: str, what: str) -> Remote:
    if _SCHEME.match(path) and not path.startswith(REMOTE):
        raise OutsideRoot(f"{what} {path!r} is not in this daemon's store root {str(root)!r}")
    named = root / path
    if "\\" in path or any(ord(char) < 32 for char in path) or not root.holds(named):
        raise OutsideRoot(f"{what} {path!r} is not inside {str(root)!r}; start the daemon with a --store that holds it")
    return named


def check_paths(root: Place, request: jobs_pb2.StartRequest) -> Place:
    """Return the run's real folder; a Refusal if it, or any path of the spec inside it, lies elsewhere."""
    run = inside(root, request.run_path, what="run_path")
    kind = request.WhichOneof("spec")
    if kind is not None:
        _check_inside(run, _paths(kind, getattr(request, kind), ("state_path",)))
    return run


def check_item_paths(run: Place, item: jobs_pb2.Item) -> None:
    """Refuse an item of a stream job that names a path outside the run's folder."""
    kind = item.WhichOneof("kind")
    if kind is not None:
        _check_inside(run, _paths(kind, getattr(item, kind), ("state_path", "checkpoint_path")))


def _check_inside(run: Place, paths: Iterator[tuple[str, str]]) -> None:
    for name, path in paths:
        if Path(path).is_absolute() or path.startswith(REMOTE):
            raise OutsideRoot(f"{name} {path!r} must be relative to the run's folder {str(run)!r}")
        inside(run, path, what=name)


def _paths(name: str, message: Message, optional: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield name and value of every path in a spec: of each field called so, whatever message it is in. `optional` ones may be empty."""
    for field in message.DESCRIPTOR.fields:
        value, inner = getattr(message, field.name), f"{name}.{field.name}"
        if field.message_type is not None and field.is_repeated:
            for index, each in enumerate(value):
                yield from _paths(f"{inner}[{index}]", each, optional)
        elif field.message_type is not None:
            if field.name in _REQUIRED or message.HasField(field.name):
                yield from _paths(inner, value, optional)
        elif field.name.endswith("path") and (value or field.name not in optional):
            yield inner, value
