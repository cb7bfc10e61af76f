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
    _check_inside(run, _spec_paths(request))
    return run


def check_item_paths(run: Path, item: jobs_pb2.Item) -> None:
    """Refuse an item of a stream job that names a path outside the run's folder."""
    kind = item.WhichOneof("kind")
    if kind == "search":
        _check_inside(run, _search_paths(item.search))
    elif kind == "learn":
        _check_inside(run, _learn_paths(item.learn))


def _check_inside(run: Path, paths: Iterator[tuple[str, str]]) -> None:
    for name, path in paths:
        if Path(path).is_absolute():
            raise OutsideRoot(f"{name} {path!r} must be relative to the run's folder {str(run)!r}")
        inside(run, path, what=name)


def _spec_paths(request: jobs_pb2.StartRequest) -> Iterator[tuple[str, str]]:
    kind = request.WhichOneof("spec")
    if kind == "initialise":
        yield "initialise.output_path", request.initialise.output_path
    elif kind == "search":
        yield from _search_paths(request.search)
    elif kind == "learn":
        yield "learn.checkpoint_path", request.learn.checkpoint_path
        yield from _learn_paths(request.learn)
    elif kind == "stream_learn" and request.stream_learn.HasField("state"):
        yield "stream_learn.state.path", request.stream_learn.state.path


def _search_paths(spec: jobs_pb2.SearchSpec) -> Iterator[tuple[str, str]]:
    yield "search.output_path", spec.output_path
    yield "search.network.path", spec.network.path


def _learn_paths(spec: jobs_pb2.LearnSpec) -> Iterator[tuple[str, str]]:
    yield "learn.output_path", spec.output_path
    yield from ((f"learn.shards[{index}].path", shard.path) for index, shard in enumerate(spec.shards))
    if spec.HasField("initial_network"):
        yield "learn.initial_network.path", spec.initial_network.path
    if spec.HasField("state"):
        yield "learn.state.path", spec.state.path
    if spec.state_path:
        yield "learn.state_path", spec.state_path
