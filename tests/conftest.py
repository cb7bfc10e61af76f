"""Fixtures shared by all tests."""

from __future__ import annotations

import os

# One thread in this process and in the daemons it starts: with more, operations on small tensors wait for each other on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.failpoint_runs import Bench
    from tests.s3_server import S3Server

ROOM_BYTES = 2 * 2**30


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Daemons and orchestrators that start at once, for tests that need dozens of runs.

    In memory where there is room, as they would wait for the disk most of the time; a process that is killed loses nothing that it wrote,
    in memory or not.
    """
    from tests.failpoint_runs import Bench

    with memory_folder() or nullcontext(tmp_path_factory.mktemp("bench")) as folder, Bench(Path(folder) / "runs", proxied=True) as bench:
        yield bench


def memory_folder() -> tempfile.TemporaryDirectory[str] | None:
    """Return a folder in memory, or None where there is no room for it."""
    shared = Path("/dev/shm")
    if not (shared.is_dir() and os.access(shared, os.W_OK) and shutil.disk_usage(shared).free > ROOM_BYTES):
        return None
    return tempfile.TemporaryDirectory(prefix="repsearch-", dir=shared)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with `MNIST/raw/*-ubyte`, named by the environment variable REPSEARCH_DATA; skips where it is not set."""
    folder = os.environ.get("REPSEARCH_DATA", "")
    if not folder:
        pytest.skip(
            "needs real MNIST: set REPSEARCH_DATA to the folder that has MNIST/raw/train-images-idx3-ubyte and the other three files"
        )
    if not (Path(folder) / "MNIST" / "raw" / "train-images-idx3-ubyte").is_file():
        pytest.fail(f"REPSEARCH_DATA={folder} has no MNIST/raw/train-images-idx3-ubyte; unset it to skip")
    return Path(folder)


@pytest.fixture(scope="session")
def s3_session() -> Iterator[S3Server]:
    """One S3 server for all tests."""
    from tests.s3_server import running

    with running() as server:
        yield server


@pytest.fixture
def s3(s3_session: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The S3 server, without faults, and the environment by which clients find it."""
    for name, value in s3_session.environment().items():
        monkeypatch.setenv(name, value)
    yield s3_session
    s3_session.heal()


@pytest.fixture
def s3_location(s3: S3Server) -> str:
    """A place on the S3 server where nothing is."""
    return f"s3://runs/{uuid.uuid4().hex}"
