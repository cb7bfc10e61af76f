"""Fixtures shared by all tests."""

from __future__ import annotations

import os

# One thread in this process and in the daemons it starts: with more, operations on small tensors wait for each other on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest


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
