"""Which paths a request may name: only those inside the daemon's store root.

The check follows links as they are now; a link made between the check and the job's use of the path is not seen. Whoever can make
one can write to the store root anyway.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from repsearch.errors import StoreError
from repsearch.rpc.v1 import jobs_pb2
from repsearch.serving.refusals import BadRequest, OutsideRoot

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


def prepare_root(store: Path) -> Path:
    """Return the real path of the store root, created if it is not there; StoreError if it is not a writable local folder."""
    if _SCHEME.match(str(store)):
        raise StoreError(f"store root {str(store)!r}: only local folders can be served; give --store a path")
    try:
        store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=store):
            return store.resolve(strict=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(f"store root {str(store)!r} is not a writable folder ({reason}); give --store one that is") from None


def inside(root: Path, path: str, *, what: str) -> Path:
    """Return the real path that `path`, relative to `root` or absolute, names; a Refusal unless it lies inside `root`."""
    if not path or "\0" in path:
        raise BadRequest(f"{what} {path!r} is not a path")
    if _SCHEME.match(path):
        raise OutsideRoot(f"{what} {path!r} is not a local path; this daemon serves paths inside its store root {str(root)!r}")
    try:
        real = (root / path).resolve()
    except (OSError, RuntimeError) as error:  # a loop of links
        raise BadRequest(f"{what} {path!r} cannot be resolved: {error}") from None
    if not real.is_relative_to(root):
        raise OutsideRoot(f"{what} {path!r} is {str(real)!r}, outside {str(root)!r}; start the daemon with a --store that holds it")
    return real


def check_paths(root: Path, request: jobs_pb2.StartRequest) -> Path:
    """Return the run's real folder; a Refusal if it, or any path of the spec inside it, lies elsewhere."""
    run = inside(root, request.run_path, what="run_path")
    for name, path in _spec_paths(request):
        if Path(path).is_absolute():
            raise OutsideRoot(f"{name} {path!r} must be relative to the run's folder {str(run)!r}")
        inside(run, path, what=name)
    return run


def _spec_paths(request: jobs_pb2.StartRequest) -> Iterator[tuple[str, str]]:
    kind = request.WhichOneof("spec")
    if kind == "initialise":
        yield "initialise.output_path", request.initialise.output_path
    elif kind == "search":
        yield "search.output_path", request.search.output_path
        yield "search.network.path", request.search.network.path
    elif kind == "learn":
        yield "learn.output_path", request.learn.output_path
        yield "learn.checkpoint_path", request.learn.checkpoint_path
        yield from ((f"learn.shards[{index}].path", shard.path) for index, shard in enumerate(request.learn.shards))
        if request.learn.HasField("initial_network"):
            yield "learn.initial_network.path", request.learn.initial_network.path
        if request.learn.HasField("state"):
            yield "learn.state.path", request.learn.state.path
        if request.learn.state_path:
            yield "learn.state_path", request.learn.state_path
